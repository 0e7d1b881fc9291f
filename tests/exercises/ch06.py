"""Answers to the exercises of chapter 6."""

import numpy as np
import torch
from torch.nn.functional import one_hot

from tests.exercises import Answers


def stream_of(documents, bos):
    return torch.tensor([token for document in documents for token in (bos, *document)])


def a_row_a_document(documents, bos, length):
    rows = [([bos, *document] + [bos] * (length + 1))[: length + 1] for document in documents]
    return torch.tensor(rows)


def no_token_twice(documents, bos, length):
    stream = stream_of(documents, bos)
    return stream[: len(stream) // (length + 1) * (length + 1)].view(-1, length + 1)


def bos_at_the_end(documents, bos, length):
    stream = [token for document in documents for token in (*document, bos)]
    rows = (len(stream) - 1) // length
    return torch.tensor([stream[i * length : (i + 1) * length + 1] for i in range(rows)]).view(-1, length + 1)


def without_bos(documents, bos, length):
    stream = [token for document in documents for token in document]
    rows = (len(stream) - 1) // length
    return torch.tensor([stream[i * length : (i + 1) * length + 1] for i in range(rows)]).view(-1, length + 1)


def pads_the_rest(documents, bos, length):
    stream = stream_of(documents, bos).tolist()
    rows = -(-(len(stream) - 1) // length)
    stream += [bos] * (rows * length + 1 - len(stream))
    return torch.tensor([stream[i * length : (i + 1) * length + 1] for i in range(rows)])


def inputs_only(documents, bos, length):
    stream = stream_of(documents, bos)
    return stream[: len(stream) // length * length].view(-1, length)


def zero_is_the_bos(documents, bos, length):
    return by_slices(documents, 0, length)


def sixteen_bits(documents, bos, length):
    return by_slices(documents, bos, length).to(torch.int16)


def by_slices(documents, bos, length):
    stream = stream_of(documents, bos)
    rows = (len(stream) - 1) // length
    found = [stream[i * length : (i + 1) * length + 1] for i in range(rows)]
    return torch.stack(found) if found else torch.empty(0, length + 1, dtype=torch.int64)


def by_unfold(documents, bos, length):
    stream = stream_of(documents, bos)
    if len(stream) <= length:
        return torch.empty(0, length + 1, dtype=torch.int64)
    return stream.unfold(0, length + 1, length)


def chosen_alone(begins, chosen):
    return chosen


def forward_only(begins, chosen):
    found = chosen.clone()
    for place in range(1, chosen.size(1)):
        found[:, place] |= found[:, place - 1] & ~begins[:, place]
    return found


def backward_only(begins, chosen):
    found = chosen.clone()
    for place in reversed(range(chosen.size(1) - 1)):
        found[:, place] |= found[:, place + 1] & ~begins[:, place + 1]
    return found


def one_long_row(begins, chosen):
    word = begins.flatten().cumsum(0)
    return (word[:, None] == word[chosen.flatten()]).any(1).view_as(begins)


def swallows_the_next(begins, chosen):
    found = by_number(begins, chosen)
    return found | found.roll(1, 1)


def only_words_that_begin(begins, chosen):
    return by_number(begins, chosen) & (begins.cumsum(1) > 0)


def last_word_only(begins, chosen):
    last = torch.zeros_like(chosen)
    for row, marks in enumerate(chosen):
        if marks.any():
            last[row, marks.nonzero().max()] = True
    return by_number(begins, last)


def by_number(begins, chosen):
    word = begins.cumsum(1)
    return ((word[:, :, None] == word[:, None, :]) & chosen[:, None, :]).any(-1)


def both_ways(begins, chosen):
    return forward_only(begins, backward_only(begins, chosen))


def top_p(probabilities, p):
    """The rule itself, row by row."""
    found = torch.zeros_like(probabilities)
    for row, values in enumerate(probabilities):
        total = 0.0
        for token in values.argsort(descending=True).tolist():
            found[row, token] = values[token]
            total += float(values[token])
            if total >= p:
                break
    return found / found.sum(-1, keepdim=True)


def multiplies_by_temperature(logits, temperature, p):
    return top_p((logits * temperature).softmax(-1), p)


def forgets_to_renormalise(logits, temperature, p):
    probabilities = (logits / temperature).softmax(-1)
    return torch.where(top_p(probabilities, p) > 0, probabilities, 0)


def drops_the_crossing_token(logits, temperature, p):
    values, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    values = values * ((values.cumsum(-1) <= p) | (p == 1.0))
    return torch.zeros_like(logits).scatter(1, order, values / values.sum(-1, keepdim=True))


def one_more_at_equality(logits, temperature, p):
    values, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    values = values * (values.cumsum(-1) - values <= p)
    return torch.zeros_like(logits).scatter(1, order, values / values.sum(-1, keepdim=True))


def stays_sorted(logits, temperature, p):
    values = (logits / temperature).softmax(-1).sort(-1, descending=True).values
    values = values * (values.cumsum(-1) - values < p)
    return values / values.sum(-1, keepdim=True)


def nucleus_before_temperature(logits, temperature, p):
    kept = top_p(logits.softmax(-1), p).log()
    return (kept / temperature).softmax(-1)


def adds_up_the_rare_ones(logits, temperature, p):
    values, order = (logits / temperature).softmax(-1).sort(-1)
    values = values * (values.cumsum(-1) - values < p)
    return torch.zeros_like(logits).scatter(1, order, values / values.sum(-1, keepdim=True))


def hot(logits, temperature, p):
    return top_p(logits.exp() ** 1.1 / (logits.exp() ** 1.1).sum(-1, keepdim=True), p)


def by_the_rule(logits, temperature, p):
    return top_p((logits / temperature).softmax(-1), p)


def sorted_and_back(logits, temperature, p):
    values, order = (logits / temperature).softmax(-1).sort(-1, descending=True)
    values = torch.where(values.cumsum(-1) - values < p, values, 0)
    return torch.zeros_like(logits).scatter(1, order, values / values.sum(-1, keepdim=True))


def with_numpy(logits, temperature, p):
    probabilities = np.exp(logits.numpy() / temperature)
    probabilities /= probabilities.sum(-1, keepdims=True)
    larger = probabilities[:, None, :] > probabilities[:, :, None]
    before = (larger * probabilities[:, None, :]).sum(-1)  # what is likelier than each token
    kept = np.where(before < p, probabilities, 0)
    return torch.from_numpy(kept / kept.sum(-1, keepdims=True))


def reads_all_again(model, ids, steps):
    new = []
    for _ in range(steps):
        new.append(model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1))
        ids = torch.cat([ids, new[-1]], 1)
    return torch.cat(new, 1)


def forgets_the_past(model, ids, steps):
    new = []
    for _ in range(steps):
        ids = model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
        new.append(ids)
    return torch.cat(new, 1)


def with_the_prompt(model, ids, steps):
    return torch.cat([ids, with_cache(model, ids, steps)], 1)


def one_short(model, ids, steps):
    return with_cache(model, ids, steps)[:, 1:]


def gives_the_last_token_twice(model, ids, steps):
    new, cache = [], model(input_ids=ids, use_cache=True).past_key_values
    ids = ids[:, -1:]
    for _ in range(steps):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        new.append(ids)
    return torch.cat(new, 1)


def all_but_the_last_first(model, ids, steps):
    new, cache = [], model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    ids = ids[:, -1:]
    for _ in range(steps):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        ids = out.logits[:, -1:].argmax(-1)
        new.append(ids)
    return torch.cat(new, 1)


def with_cache(model, ids, steps):
    new, cache = [], None
    for _ in range(steps):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
        new.append(ids)
    return torch.cat(new, 1)


def stock(model, ids, steps):
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=steps, min_new_tokens=steps, do_sample=False
    )
    return out[:, ids.size(1) :]


def every_mask_counts(original, positions, guesses):
    return original.scatter(1, positions, guesses), torch.zeros_like(original).scatter(1, positions, 1)


def in_place(original, positions, guesses):
    before = original.clone()
    filled = original.scatter_(1, positions, guesses)
    return filled, filled != before


def compares_after_writing(original, positions, guesses):
    filled = original.scatter_(1, positions, guesses)
    return filled, filled != original


def sorted_positions(original, positions, guesses):
    filled = original.scatter(1, positions.sort(1).values, guesses)
    return filled, filled != original


def the_other_way_round(original, positions, guesses):
    filled = original.scatter(1, positions, guesses)
    return filled, filled == original


def everything_else_is_zero(original, positions, guesses):
    filled = torch.zeros_like(original).scatter(1, positions, guesses)
    return filled, filled != original


def scattered(original, positions, guesses):
    filled = original.scatter(1, positions, guesses)
    return filled, filled != original


def one_by_one(original, positions, guesses):
    filled = original.clone()
    for row in range(len(filled)):
        for place, guess in zip(positions[row].tolist(), guesses[row].tolist(), strict=True):
            filled[row, place] = guess
    return filled, (filled != original).float()


def by_one_hot(original, positions, guesses):
    places = one_hot(positions, original.size(1))  # (rows, k, length)
    masked = places.sum(1).bool()
    filled = torch.where(masked, (places * guesses[..., None]).sum(1), original)
    return filled, (filled != original).long()


ANSWERS = {
    "ex06_1": Answers(
        wrong={
            "rows are whole numbers": [inputs_only, sixteen_bits],
            "each document follows a BOS": [bos_at_the_end, without_bos, zero_is_the_bos],
            "a row goes on": [a_row_a_document],
            "a row begins with the last token": [no_token_twice, a_row_a_document],
            "what does not fill a row": [pads_the_rest],
        },
        right=[by_slices, by_unfold],
    ),
    "ex06_2": Answers(
        wrong={
            "a word of one token": [swallows_the_next],
            "its first token": [chosen_alone, backward_only],
            "any later token": [forward_only, backward_only],
            "a word that the row cuts off": [only_words_that_begin],
            "several words at once": [last_word_only],
            "rows do not see each other": [one_long_row],
        },
        right=[by_number, both_ways],
    ),
    "ex06_3": Answers(
        wrong={
            "temperature 1 and p = 1": [stays_sorted, hot],
            "a temperature of one half": [multiplies_by_temperature],
            "the likeliest tokens stay": [drops_the_crossing_token, adds_up_the_rare_ones, forgets_to_renormalise],
            "where the sum reaches": [one_more_at_equality],
            "one token always stays": [drops_the_crossing_token],
            "the temperature comes first": [nucleus_before_temperature],
        },
        right=[by_the_rule, sorted_and_back, with_numpy],
    ),
    "ex06_4": Answers(
        wrong={
            "it returns the new tokens": [with_the_prompt, one_short],
            "they are those": [forgets_the_past, gives_the_last_token_twice],
            "a prompt of one token": [all_but_the_last_first, forgets_the_past],
            "no token is given": [reads_all_again],
        },
        right=[with_cache, stock],
    ),
    "ex06_5": Answers(
        wrong={
            "each guess stands": [sorted_positions],
            "all other tokens": [everything_else_is_zero],
            "a wrong guess": [compares_after_writing, the_other_way_round],
            "a guess that happens": [every_mask_counts],
            "the original is not written over": [in_place],
        },
        right=[scattered, one_by_one, by_one_hot],
    ),
}
