"""Statistics: Wilson interval, McNemar's test, sample size for a given drop."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from vitdeploy.errors import UsageError

_SPREAD = 8.0  # standard deviations of a binomial that are summed; the remainder is below 1e-14
_MOST_IMAGES = 1 << 22
_MOST_SUMMED = 10_000  # images that only one classifies correctly


def wilson(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a share, both ends from 0 to 1: Wilson (1927), doi:10.1080/01621459.1927.10502953.

    Raises:
        UsageError: If the total is 0, or a number is invalid.
    """
    if not (0 <= correct <= total and total > 0 and 0 < confidence < 1):
        raise UsageError(
            f"an interval needs 0 <= correct <= total, total > 0 and 0 < confidence < 1, got {correct}, {total} and "
            f"{confidence}",
            found=(correct, total, confidence),
        )
    z2, share = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2, correct / total
    center = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * total)) / total) / (1 + z2 / total)
    return max(center - half, 0.0), min(center + half, 1.0)  # at 0 and 1 exact, except for rounding


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947), doi:10.1007/BF02295996.

    If two classifiers are equally accurate, an image that only one classifies correctly is equally likely to be
    either's. p is the probability that these images are then divided at least as unequally as observed.

    Args:
        only_first: Number of images that only the first classifies correctly.
        only_second: Number of images that only the second classifies correctly.
    """
    if min(only_first, only_second) < 0:
        counts = (only_first, only_second)
        raise UsageError(f"McNemar's test needs counts from 0 up, got {only_first} and {only_second}", found=counts)
    count, fewer = only_first + only_second, min(only_first, only_second)
    ways = total = 1
    for index in range(fewer):
        ways = ways * (count - index) // (index + 1)
        total += ways
    return min(1.0, 2 * total / (1 << count))


def mcnemar_power(images: int, lost: float, gained: float, alpha: float = 0.05, beyond: float = 0.0) -> float:
    """Power to detect a true accuracy drop: larger than `beyond`, with McNemar's exact test at `alpha`.

    Above about 10,000 images that only one classifies correctly, the normal approximation is used (Connor 1987,
    doi:10.2307/2531961).

    Args:
        images: Number of images that both classify.
        lost: Share of all images that only the first classifies correctly, 0 to 1.
        gained: Share that only the second classifies correctly; less than `lost`.
        alpha: Largest p-value that counts as a drop.
        beyond: Largest drop allowed, as a share of these images.
    """
    share = lost + gained
    if not (images >= 1 and 0 <= gained < lost and share <= 1 and 0 < alpha < 1):
        raise UsageError(
            f"power needs images from 1 up, shares 0 <= gained < lost with a sum of at most 1, and 0 < alpha < 1; got "
            f"{images}, {gained}, {lost} and {alpha}",
            found=(images, gained, lost, alpha),
        )
    if images * share > _MOST_SUMMED:
        least_seen = max(beyond, -NormalDist().inv_cdf(alpha / 2) * math.sqrt(share / images))
        deviation = math.sqrt(max(share - (lost - gained) ** 2, 0.0) / images)
        return NormalDist(lost - gained, deviation).cdf(2 * (lost - gained) - least_seen) if deviation else 1.0
    spread = _SPREAD * math.sqrt(images * share * (1 - share)) + 1
    least, most = max(0, math.floor(images * share - spread)), min(images, math.ceil(images * share + spread))
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, images + 1, dtype=np.float64)))])

    def pmf(count: int, chance: float, first: int, last: int) -> np.ndarray:
        k = np.arange(first, last + 1)
        ways = log_factorial[count] - log_factorial[k] - log_factorial[count - k]
        if chance in (0.0, 1.0):
            return np.where(k == chance * count, 1.0, 0.0)
        chances: np.ndarray = np.exp(ways + k * math.log(chance) + (count - k) * math.log1p(-chance))
        return chances

    power = 0.0
    for count, weight in zip(range(least, most + 1), pmf(images, share, least, most), strict=True):
        tail = np.cumsum(pmf(count, 0.5, 0, count)[::-1])[::-1]  # probability of k losses or more if both are equal
        below = np.flatnonzero(2 * tail <= alpha)
        first = max(below[0] if len(below) else count + 1, math.floor((count + beyond * images) / 2 + 1e-9) + 1)
        if first <= count:
            power += weight * pmf(count, lost / share, int(first), count).sum()
    return float(power)


def images_needed(
    drop: float, *, disagreement: float | None = None, alpha: float = 0.05, power: float = 0.9, beyond: float = 0.0
) -> int:
    """Number of paired images needed to detect an accuracy drop; see `mcnemar_power`.

    The power at this number is sufficient; nearby numbers can have slightly less or more, because the test is discrete.

    Args:
        drop: Accuracy drop as a share of the images: 0.02 is two points.
        disagreement: Share of images that exactly one of the two classifies correctly, at least the drop. Default: the
            drop. More disagreement needs more images.
        alpha: Largest p-value that counts as a drop.
        power: Probability of detecting a drop of this size.
        beyond: Largest drop allowed; less than `drop`.

    Raises:
        UsageError: If a number is invalid, or more than 4 million images are needed.
    """
    disagreement = drop if disagreement is None else disagreement
    if not (0 <= beyond < drop <= disagreement <= 1 and 0 < alpha < 1 and 0 < power < 1):
        raise UsageError(
            f"0 <= beyond < drop <= disagreement <= 1, 0 < alpha < 1 and 0 < power < 1 must hold, got {beyond}, "
            f"{drop}, {disagreement}, {alpha} and {power}",
            found=(beyond, drop, disagreement, alpha, power),
        )
    lost, gained = (disagreement + drop) / 2, (disagreement - drop) / 2
    low, high = 0, 16
    while mcnemar_power(high, lost, gained, alpha, beyond) < power:
        low, high = high, 2 * high
        if high > _MOST_IMAGES:
            raise UsageError(
                f"a drop of {drop:g} among {disagreement:.2%} of disagreement is not found with {_MOST_IMAGES} images",
                what="drop", expected=_MOST_IMAGES, found=drop, hint="allow a larger drop",
            )  # fmt: skip
    while high - low > 1:
        middle = (low + high) // 2
        if mcnemar_power(middle, lost, gained, alpha, beyond) < power:
            low = middle
        else:
            high = middle
    return high


def smallest_bound(
    images: int, times: float, *, disagreement: float = 0.0, alpha: float = 0.05, power: float = 0.9
) -> float:
    """Smallest usable bound on an accuracy drop: with this many images, a drop of `times` its size is detected.

    Args:
        images: Number of images that both classify.
        times: Factor above 1.
        disagreement: As in `images_needed`; the larger drop itself if that is more.
        alpha: Largest p-value that counts as a drop.
        power: Probability of detecting the larger drop.

    Returns:
        A share of the images.

    Raises:
        UsageError: If a number is invalid, or the images are too few to detect any drop.
    """
    if not (images >= 1 and times > 1 and 0 <= disagreement <= 1 and 0 < alpha < 1 and 0 < power < 1):
        raise UsageError(
            f"images from 1 up, times above 1, 0 <= disagreement <= 1, 0 < alpha < 1 and 0 < power < 1 must hold, got "
            f"{images}, {times}, {disagreement}, {alpha} and {power}",
            found=(images, times, disagreement, alpha, power),
        )

    def is_seen(allowed: int) -> bool:
        drop = min(times * allowed / images, 1.0)
        share = max(drop, disagreement)
        return mcnemar_power(images, (share + drop) / 2, (share - drop) / 2, alpha, allowed / images) >= power

    most = math.floor(images / times)
    if most < 1 or not is_seen(most):
        raise UsageError(f"{images} images show no drop at all", what="images", found=images, hint="add images")
    low, high = 0, 1
    while high < most and not is_seen(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_seen(middle) else (middle, high)
    return high / images
