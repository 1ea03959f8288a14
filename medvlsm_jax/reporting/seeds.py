"""Results of the same settings under several seeds of the training, taken together."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from medvlsm_jax.reporting.comparison import Result, label, model_name, name_classes, settings_of, varying_settings

SEED = "seed"


@dataclasses.dataclass(frozen=True)
class SeedGroup:
    """Results that differ in the seed alone.

    Attributes:
        model: as in a result, without its seed.
        seeds: at least two.
        results: one for each seed, in the same order.
    """

    model: str
    seeds: Sequence[str]
    results: Sequence[Result]

    def spread(self, metric: str) -> tuple[float | None, float | None]:
        """Mean and sample standard deviation of a metric's means over the seeds; None where one has not the metric."""
        means = [result.values.get(f"{metric}_mean") for result in self.results]
        found = np.array([mean for mean in means if mean is not None], np.float64)
        return (float(found.mean()), float(found.std(ddof=1))) if len(found) == len(means) else (None, None)


def seed_groups(results: Sequence[Result]) -> list[SeedGroup]:
    """The results of which there are several seeds; of a seed that was trained twice the first run counts."""
    found: dict[tuple[object, ...], dict[str, Result]] = {}
    for result in results:
        first = result.evaluations[0]
        settings = settings_of(first)
        seed = settings.pop(SEED)
        place = (result.trained_on, result.dataset, result.trained_prompt, result.prompt, result.missing)
        found.setdefault((model_name(first), *place, *settings.items()), {}).setdefault(seed, result)
    varying = varying_settings([one for result in results for one in result.evaluations])
    return [make_group(by_seed, varying) for by_seed in found.values() if len(by_seed) > 1]


def make_group(by_seed: Mapping[str, Result], varying: Mapping[str, Sequence[str]]) -> SeedGroup:
    """The results of several seeds, in the seeds' order."""
    seeds = sorted(by_seed, key=lambda seed: (len(seed), seed))
    one = by_seed[seeds[0]]
    first = one.evaluations[0]
    model = label(first, [name for name in varying.get(model_name(first), ()) if name != SEED])
    if one.missing:
        model = name_classes(model, [evaluation.target for evaluation in one.evaluations])
    return SeedGroup(model, seeds, [by_seed[seed] for seed in seeds])
