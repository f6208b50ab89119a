"""The search of DDSM (Yang et al. 2024): a genetic algorithm on a weighted sum of objectives."""

from __future__ import annotations

from pymoo.algorithms.soo.nonconvex.ga import GA, FitnessSurvival, comp_by_cv_and_fitness
from pymoo.operators.selection.tournament import TournamentSelection

from stepsearch.algorithms.genetic import Genetic, resets, splices
from stepsearch.algorithms.registry import ALGORITHMS, Problem
from stepsearch.core.errors import ConfigError
from stepsearch.core.protocols import Genome
from stepsearch.core.settings import SearchSettings

WEIGHTS = {"fid": 1.0, "gflops_per_image": 0.5}  # as coded: 0.001 per million multiply-adds
RATE = 0.001  # of mutation per gene
UNIFORM = 4  # strategies of one width that the search begins with


def weights_of(problem: Problem, settings: SearchSettings) -> tuple[float, ...]:
    """One weight per objective; ConfigError where there is none for one of them."""
    names = problem.names or tuple(WEIGHTS)
    given = settings.weights or tuple(WEIGHTS[n] for n in names if n in WEIGHTS)
    if len(given) != problem.objectives:
        raise ConfigError(
            f"search.weights: ddsm-ga adds up {problem.objectives} objectives and has "
            f"{len(given)} weights for them; give one each, e.g. weights: [1, 0.5]"
        )
    return given


def first_of(problem: Problem) -> list[Genome]:
    """The given genomes, with no more than four of one width, from the narrowest to the widest.

    Of one width are those that differ from the first of them in widths alone; with other settings
    they are left out. What is not of one width, as from a warm start, stays.
    """
    widths = problem.width_genes
    if not widths:
        return list(problem.first)

    def settings(genome: Genome) -> Genome:
        held = {gene for group in widths for gene in group}
        return tuple(value for gene, value in enumerate(genome) if gene not in held)

    def uniform(genome: Genome) -> bool:
        return all(len({genome[gene] for gene in group}) == 1 for group in widths)

    even = [g for g in problem.first if uniform(g)]
    same = sorted(
        {g for g in even if settings(g) == settings(even[0])}, key=lambda g: g[widths[0][0]]
    )
    count = min(UNIFORM, len(same))
    picked = [same[round(i * (len(same) - 1) / max(count - 1, 1))] for i in range(count)]
    return [*(g for g in problem.first if not uniform(g)), *picked]


class DdsmGa(Genetic):
    """DDSM's search as told in the paper: there is no front, one weighted sum decides.

    Compared with main.py of EnVision-Research/DDSM @9e15f46. Kept: the objective FID + 0.5 per
    GFLOP, or `weights`; uniform strategies, then random ones; single-point crossover; a mutation
    rate of 0.001 per gene. There `prob` of the operator also rules out whole individuals, which
    makes it 1e-6; we take what the paper says. New here: nothing is asked twice.
    """

    steady = False

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        self._weights = weights_of(problem, settings)
        super().__init__(
            problem,
            settings,
            GA,
            objectives=1,
            first=first_of(problem),
            crossover=splices(1, settings),
            mutation=resets(problem, settings, RATE),
            selection=TournamentSelection(func_comp=comp_by_cv_and_fitness),
            survival=FitnessSurvival(),
        )

    def _scored(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return (sum(w * v for w, v in zip(self._weights, values, strict=True)),)


ALGORITHMS.register("ddsm-ga")(DdsmGa)
