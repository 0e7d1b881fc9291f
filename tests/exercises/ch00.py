"""Answers to the exercises of notebook 00."""

import math

from tests.exercises import Answers


def stays_in_nats(nats_per_token, tokens, bytes):
    return nats_per_token * tokens / bytes


def bits_per_token(nats_per_token, tokens, bytes):
    return nats_per_token / math.log(2)


def turned_over(nats_per_token, tokens, bytes):
    return nats_per_token / math.log(2) * bytes / tokens


def perplexity(nats_per_token, tokens, bytes):
    return math.exp(nats_per_token) * tokens / bytes


def whole_bits_only(nats_per_token, tokens, bytes):
    return min(round(nats_per_token / math.log(2)), 7) * tokens / bytes


def in_order(nats_per_token, tokens, bytes):
    return nats_per_token / math.log(2) * tokens / bytes


def change_of_base(nats_per_token, tokens, bytes):
    return tokens * math.log2(math.exp(nats_per_token)) / bytes


ANSWERS = {
    "ex00_1": Answers(
        wrong={
            "nats become bits": [stays_in_nats],
            "longer tokens": [bits_per_token, turned_over],
            "a perfect model": [perplexity],
            "a uniform guess": [whole_bits_only],
        },
        right=[in_order, change_of_base],
    ),
}
