"""The baseline of one width throughout."""

from collections import Counter

from toy_search import asks_of, flat, make, problem_of, values_of

SIZES = (2, 3, 4, 4, 4, 5, 5)  # two settings, then widths of two networks
WIDTHS = ((2, 3, 4), (5, 6))


def problem(**more):
    return problem_of(SIZES, identity=lambda g: g, width_genes=WIDTHS, **more)


def even(genome):
    return len(set(genome[2:5])) == 1 and len(set(genome[5:])) == 1


def test_every_network_runs_at_one_width_and_every_such_strategy_is_asked():
    asked = flat(asks_of("best-uniform", problem(), 60))
    assert all(map(even, asked))
    assert len(set(asked)) == len(asked) == 2 * 3 * 4 * 5


def test_of_the_given_genomes_those_of_one_width_come_first():
    given = [(1, 2, 0, 1, 0, 3, 3), (1, 2, 3, 3, 3, 1, 1), (0, 0, 2, 2, 2, 4, 4)]
    assert asks_of("best-uniform", problem(first=given), 1)[0][:2] == given[1:]


def test_widths_and_settings_come_equally_often():
    asked = flat(asks_of("best-uniform", problem(), 1, population=20))
    for gene, count in ((0, 10), (1, 6), (2, 5), (5, 4)):
        counts = Counter(genome[gene] for genome in asked)
        assert len(counts) == SIZES[gene]
        assert min(counts.values()) >= count - 2
        assert max(counts.values()) <= count + 2


def test_values_are_told_and_change_nothing():
    one, two = make("best-uniform", problem()), make("best-uniform", problem())
    first = one.ask()
    one.tell([values_of(genome) for genome in first], first)
    assert first == two.ask()
    assert one.ask() == two.ask()
