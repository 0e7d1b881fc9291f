"""What every trained model must stand beside: methods that need no neural network and a second of time."""

import numpy as np

from course_lib.data.labelled import Task


def tfidf(task: Task, strengths: tuple[float, ...] = (1.0, 3.0, 10.0)) -> np.ndarray:
    """Class probabilities of the test texts, (texts, classes), by TF-IDF and logistic regression.

    Words and pairs of words (characters and pairs of them where a text has no spaces), logarithmic counts; the
    inverse regularization `strengths` is chosen on the dev texts, as the trained models' settings are.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    spaced = np.mean([" " in text for text in task.train.texts]) > 0.5
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2, analyzer="word" if spaced else "char")
    train = vectorizer.fit_transform(task.train.texts)
    dev, test = vectorizer.transform(task.dev.texts), vectorizer.transform(task.test.texts)
    models = [LogisticRegression(C=c, max_iter=1000).fit(train, task.train.labels) for c in strengths]
    best = max(models, key=lambda model: model.score(dev, task.dev.labels))
    chances = np.zeros((len(task.test), len(task.classes)))
    chances[:, best.classes_] = best.predict_proba(test)  # a class that train lacks keeps 0
    return chances
