"""Answers to the exercises of chapter 4."""

import math

import torch

from tests.exercises import Answers

BF16 = torch.bfloat16
F8 = torch.float8_e4m3fn


def plain_cast(x):
    return x.clamp(-448, 448).to(F8), 1.0


def other_format(x):
    scale = max(x.abs().max().item(), 1e-38) / 448
    return (x / scale).to(torch.float8_e5m2), scale


def by_the_mean(x):
    scale = x.abs().mean().item() / 448 or 1.0
    return (x / scale).clamp(-448, 448).to(F8), scale


def without_the_sign(x):
    scale = x.max().item() / 448 or 1.0
    return (x / scale).to(F8), scale


def half_the_range(x):
    scale = x.abs().max().item() / 224 or 1.0
    return (x / scale).to(F8), scale


def turned_over(x):
    scale = 448 / x.abs().max().item() if x.any() else 1.0
    return (x * scale).to(F8), scale


def divides_by_zero(x):
    scale = x.abs().max() / 448
    return (x / scale).to(F8), scale


def adds_a_little(x):
    scale = (x.abs().max().item() + 1e-8) / 448
    return (x / scale).to(F8), scale


def to_the_top(x):
    largest = x.abs().max().item()
    scale = largest / 448 if largest > 0 else 1.0
    return (x / scale).to(F8), scale


def multiplied(x):
    factor = 448 / x.abs().amax().double().clamp(min=1e-300)
    return (x.double() * factor).float().to(F8), (1 / factor).item()


def not_compensated(weight, rest, update):
    return weight + update, torch.zeros_like(rest)


def wrong_sign(weight, rest, update):
    wanted = update - rest
    new = weight + wanted
    return new, wanted - (new - weight)


def rest_piles_up(weight, rest, update):
    wanted = update + rest
    new = weight + wanted
    return new, rest + (update - (new - weight)) + rest * 0.5


def in_float32(weight, rest, update):
    wanted = update.float() + rest.float()
    new = weight.float() + wanted
    return new, torch.zeros_like(new)


def rest_of_the_update(weight, rest, update):
    new = weight + update + rest
    return new, update - (new - weight)


def always_keeps(weight, rest, update):
    new = weight + (update + rest)
    return new, update + rest


def compensated(weight, rest, update):
    wanted = update + rest
    new = weight + wanted
    return new, wanted - (new - weight)


def through_float32(weight, rest, update):
    wanted = (update.float() + rest.float()).to(BF16)
    new = (weight.float() + wanted.float()).to(BF16)
    arrived = (new.float() - weight.float()).to(BF16)
    return new, (wanted.float() - arrived.float()).to(BF16)


def gradient_at_master(master, gradient_of, lr, scale):
    gradient = gradient_of(master, scale).float() / scale
    if not torch.isfinite(gradient).all():
        return master, False
    return master - lr * gradient, True


def still_scaled(master, gradient_of, lr, scale):
    gradient = gradient_of(master.half(), scale).float()
    if not torch.isfinite(gradient).all():
        return master, False
    return master - lr * gradient, True


def update_in_float16(master, gradient_of, lr, scale):
    gradient = gradient_of(master.half(), scale).float() / scale
    if not torch.isfinite(gradient).all():
        return master, False
    return (master.half() - (lr * gradient).half()).float(), True


def divides_in_float16(master, gradient_of, lr, scale):
    gradient = (gradient_of(master.half(), scale) / scale).float()
    if not torch.isfinite(gradient).all():
        return master, False
    return master - lr * gradient, True


def never_skips(master, gradient_of, lr, scale):
    return master - lr * gradient_of(master.half(), scale).float() / scale, True


def skips_weight_by_weight(master, gradient_of, lr, scale):
    gradient = gradient_of(master.half(), scale).float() / scale
    good = torch.isfinite(gradient)
    return torch.where(good, master - lr * gradient, master), bool(good.any())


def judged_by_the_half_sum(master, gradient_of, lr, scale):
    scaled = gradient_of(master.half(), scale)
    if not torch.isfinite(scaled.sum()):
        return master, False
    return master - lr * scaled.float() / scale, True


def unscaled_in_float32(master, gradient_of, lr, scale):
    gradient = gradient_of(master.half(), scale).float() / scale
    if not torch.isfinite(gradient).all():
        return master, False
    return master - lr * gradient, True


def judged_by_the_sum(master, gradient_of, lr, scale):
    scaled = gradient_of(master.to(torch.float16), scale).double()
    if not math.isfinite(scaled.abs().sum().item()):
        return master.clone(), False
    return (master.double() - lr * (scaled / scale)).float(), True


def to_nearest(x, generator):
    return x.to(BF16)


def towards_zero(x, generator):
    return (x.view(torch.int32) & -(2**16)).view(torch.float32).to(BF16)


def noise_of_a_quarter(x, generator):
    noise = torch.randint(2**14, x.shape, generator=generator, dtype=torch.int32)
    return ((x.view(torch.int32) + noise) & -(2**16)).view(torch.float32).to(BF16)


def stays_float32(x, generator):
    return by_bits(x, generator).float()


def global_chance(x, generator):
    return by_bits(x, None)


def additive_noise(x, generator):
    return (x + 2.0**-8 * (torch.rand(x.shape, generator=generator) - 0.5)).to(BF16)


def towards_plus_infinity(x, generator):
    gap = torch.ldexp(torch.tensor(1.0), torch.frexp(x).exponent - 8)
    share = (x / gap - (x / gap).floor()).abs()
    up = torch.rand(x.shape, generator=generator) < torch.where(x < 0, 1 - share, share)
    return (((x / gap).floor() + up) * gap).to(BF16)


def coin_between(x, generator):
    low = (x.view(torch.int32) & -(2**16)).view(torch.float32)
    high = ((x.view(torch.int32) & -(2**16)) + 2**16).view(torch.float32)
    up = (torch.rand(x.shape, generator=generator) < 0.5) & (low != x)
    return torch.where(up, high, low).to(BF16)


def by_bits(x, generator):
    noise = torch.randint(2**16, x.shape, generator=generator, dtype=torch.int32)
    return ((x.view(torch.int32) + noise) & -(2**16)).view(torch.float32).to(BF16)


def by_share(x, generator):
    codes = x.view(torch.int32)
    low = (codes & -(2**16)).view(torch.float32)
    high = ((codes & -(2**16)) + 2**16).view(torch.float32)
    share = (codes & (2**16 - 1)).float() / 2**16
    up = torch.rand(x.shape, generator=generator) < share
    return torch.where(up, high, low).to(BF16)


def forgets_the_rate(lrs, decay):
    return (1 - decay) ** len(lrs)


def adds_up(lrs, decay):
    return 1 - sum(lr * decay for lr in lrs)


def first_rate_only(lrs, decay):
    return (1 - lrs[0] * decay) ** len(lrs)


def mean_rate(lrs, decay):
    return (1 - sum(lrs) / len(lrs) * decay) ** len(lrs)


def exponential(lrs, decay):
    return math.exp(-sum(lrs) * decay)


def what_is_gone(lrs, decay):
    return 1 - product(lrs, decay)


def product(lrs, decay):
    return math.prod(1 - lr * decay for lr in lrs)


def step_by_step(lrs, decay):
    weight = 1.0
    for lr in lrs:
        weight -= lr * decay * weight
    return weight


ANSWERS = {
    "ex04_1": Answers(
        wrong={
            "the numbers have": [other_format],
            "the largest number": [half_the_range, plain_cast],
            "q.float() * scale": [by_the_mean, turned_over, without_the_sign],
            "tiny and huge": [plain_cast, adds_a_little],
            "zeros come back": [divides_by_zero],
        },
        right=[to_the_top, multiplied],
    ),
    "ex04_2": Answers(
        wrong={
            "weight and rest": [in_float32],
            "an update that fits": [always_keeps],
            "an update that is lost": [not_compensated],
            "the rest of earlier": [wrong_sign, rest_of_the_update],
            "4,096 updates": [not_compensated, rest_piles_up],
        },
        right=[compensated, through_float32],
    ),
    "ex04_3": Answers(
        wrong={
            "the gradient is taken": [gradient_at_master],
            "the weights move": [still_scaled],
            "the new weights are": [update_in_float16],
            "what the scale saved": [divides_in_float16],
            "gradients that are large": [judged_by_the_half_sum],
            "an infinite or": [never_skips],
            "a single infinite": [skips_weight_by_weight],
        },
        right=[unscaled_in_float32, judged_by_the_sum],
    ),
    "ex04_4": Answers(
        wrong={
            "the result is": [stays_float32],
            "a number that": [additive_noise],
            "any other": [to_nearest, towards_zero],
            "the mean is": [noise_of_a_quarter, coin_between],
            "negative numbers": [towards_plus_infinity],
            "chance comes": [global_chance, to_nearest],
        },
        right=[by_bits, by_share],
    ),
    "ex04_6": Answers(
        wrong={
            "without decay": [what_is_gone],
            "one step": [forgets_the_rate],
            "shares of several": [adds_up, exponential],
            "each step": [first_rate_only, mean_rate],
            "it is what": [exponential, adds_up],
        },
        right=[product, step_by_step],
    ),
}
