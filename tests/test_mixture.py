"""The mixture: no row lost or doubled, whatever the sizes, the rates, the kind of batches and the processes."""

from collections import Counter

import numpy as np
import pytest
from accelerate.data_loader import BatchSamplerShard

from multitask_sentence.data.sampling.layout import Layout, least_pieces, mixed_batches
from multitask_sentence.data.sampling.rates import deal_rows, set_weights
from multitask_sentence.data.sampling.sampler import FILLER_ROW, MixtureBatchSampler, MixtureDataset, first_rows


def epoch_batches(sampler: MixtureBatchSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def epoch_rows(sampler: MixtureBatchSampler, epoch: int = 0) -> list[int]:
    return [row for batch in epoch_batches(sampler, epoch) for row in batch if row != FILLER_ROW]


def dealt_out(sampler: MixtureBatchSampler, num_processes: int) -> list[list[list[int]]]:
    """By process, the batches that accelerate gives it."""
    return [
        list(BatchSamplerShard(sampler, num_processes, process, split_batches=False, even_batches=False))
        for process in range(num_processes)
    ]


def rows_of_sets(sampler: MixtureBatchSampler, batch: list[int]) -> list[int]:
    """How many rows of each set a batch has."""
    starts = np.cumsum([0, *sampler.sizes])
    return [sum(starts[which] <= row < starts[which + 1] for row in batch) for which in range(len(sampler.sizes))]


# The data set under the batches


def test_dataset_gives_every_row_under_one_running_index():
    dataset = MixtureDataset([["a", "b"], ["c"], ["d", "e", "f"]])
    assert len(dataset) == 6
    assert [dataset[index] for index in range(6)] == ["a", "b", "c", "d", "e", "f"]


def test_filler_row_has_a_sentence_and_no_label():
    assert MixtureDataset([["a"]])[FILLER_ROW] == {"sentences": [""]}


# One epoch


@pytest.mark.parametrize("sizes", [[7], [5, 12], [6, 3, 3]])
def test_the_set_that_is_furthest_behind_gives_the_next_row(sizes):
    order = sorted(((place + 0.5) / size, which) for which, size in enumerate(sizes) for place in range(size))
    batches = [[which for _, which in order[start : start + 4]] for start in range(0, len(order), 4)]
    assert list(Layout(mixed_batches(sizes, [1] * len(sizes), 4))) == [sorted(Counter(own).items()) for own in batches]


def test_rows_come_in_the_order_of_the_generators_permutation():
    rows = epoch_rows(MixtureBatchSampler([50], 8, seed=7), epoch=1)
    assert rows == np.random.default_rng([7, 0, 1]).permutation(50).tolist()


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_every_row_comes_exactly_once_over_all_processes(num_processes):
    sampler = MixtureBatchSampler([50, 7, 20], 8, least_rows=[1, 1, 4], num_processes=num_processes)
    shares = dealt_out(sampler, num_processes)
    rows = [row for share in shares for batch in share for row in batch]
    assert {len(share) for share in shares} == {len(sampler) // num_processes}
    assert sorted(row for row in rows if row != FILLER_ROW) == list(range(77))
    assert rows.count(FILLER_ROW) == -(len(sampler) - rows.count(FILLER_ROW)) % num_processes


@pytest.mark.parametrize(("num_rows", "num_fillers"), [(16, 0), (17, 1), (24, 1), (25, 0)])
def test_filler_batches_make_the_count_a_multiple_of_the_processes(num_rows, num_fillers):
    sampler = MixtureBatchSampler([num_rows], batch_size=8, num_processes=2)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert len(batches) % 2 == 0
    assert [batch for batch in batches if FILLER_ROW in batch] == [[FILLER_ROW]] * num_fillers


def test_all_batches_but_the_last_are_full():
    batches = list(MixtureBatchSampler([50, 7, 20], batch_size=8))
    assert [len(batch) for batch in batches] == [8] * 9 + [5]


def test_batches_stay_full_beside_a_set_whose_rows_keep_together():
    batches = list(MixtureBatchSampler([500, 70], batch_size=32, least_rows=[1, 16]))
    assert [len(batch) for batch in batches] == [32] * 17 + [26]


def test_rows_of_a_set_with_least_rows_come_in_at_least_so_many():
    sampler = MixtureBatchSampler([400, 70, 33], batch_size=32, least_rows=[1, 16, 8])
    counts = np.array([rows_of_sets(sampler, batch) for batch in sampler])
    assert counts[:, 1][counts[:, 1] > 0].min() >= 16
    assert counts[:, 2][counts[:, 2] > 0].min() >= 8


@pytest.mark.parametrize(("rows", "expected"), [(5, [5]), (16, [16]), (17, [8, 9]), (33, [11, 11, 11])])
def test_rows_that_cannot_be_cut_into_least_rows_are_cut_evenly(rows, expected):
    batches = list(MixtureBatchSampler([rows], batch_size=16, least_rows=[16]))
    assert sorted(map(len, batches)) == expected


def test_batches_are_full_where_every_set_keeps_its_rows_together():
    batches = list(MixtureBatchSampler([1498, 300], batch_size=32, least_rows=[16, 16]))
    assert len(batches) == 57  # 1798 / 32 = 56.2: pieces that are cut beforehand, 16 and 17 rows, need 67
    assert sum(len(batch) == 32 for batch in batches) >= 54


def test_every_set_is_spread_over_the_whole_epoch():
    sampler = MixtureBatchSampler([800, 200, 96], batch_size=32, least_rows=[1, 1, 16])
    counts = np.array([rows_of_sets(sampler, batch) for batch in sampler])
    quarters = np.array([quarter.sum(axis=0) for quarter in np.array_split(counts, 4)]) / counts.sum(axis=0)
    assert (abs(quarters - 0.25) < 0.1).all()


def test_rows_of_a_set_come_in_random_order():
    rows = epoch_rows(MixtureBatchSampler([100, 100], batch_size=10))
    for which in range(2):
        own = [row - 100 * which for row in rows if row // 100 == which]
        assert own != sorted(own)
        assert abs(np.corrcoef(own, range(100))[0, 1]) < 0.3


# Several epochs


def test_the_same_seed_and_epoch_give_the_same_batches():
    first, second = (MixtureBatchSampler([50, 7], batch_size=8, seed=3) for _ in range(2))
    epoch_batches(first, 0)
    assert epoch_batches(first, 2) == epoch_batches(second, 2)


def test_other_epochs_and_other_seeds_give_other_orders():
    sampler = MixtureBatchSampler([50, 7], batch_size=8, seed=3)
    orders = [tuple(epoch_rows(sampler, epoch)) for epoch in range(3)]
    orders.append(tuple(epoch_rows(MixtureBatchSampler([50, 7], batch_size=8, seed=4))))
    assert len(set(orders)) == 4
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(57))}


def test_sets_of_one_size_have_different_orders():
    rows = epoch_rows(MixtureBatchSampler([50, 50], batch_size=10))
    assert [row for row in rows if row < 50] != [row - 50 for row in rows if row >= 50]


@pytest.mark.parametrize("rows", [20, 60, 12, 90])
def test_a_fraction_of_a_pass_goes_on_where_the_epoch_before_stopped(rows):
    sampler = MixtureBatchSampler([40], batch_size=7, rows_per_epoch=[rows])
    stream = [row for epoch in range(20) for row in epoch_rows(sampler, epoch)]
    assert len(stream) == 20 * rows
    for start in range(0, len(stream), 40):
        cycle = stream[start : start + 40]
        assert len(set(cycle)) == len(cycle), "a row came twice before every other had come"


def test_a_small_set_goes_round_again_reshuffled_and_a_large_one_stops_early():
    sampler = MixtureBatchSampler([40, 10], batch_size=7, rows_per_epoch=[20, 30])
    rows = epoch_rows(sampler)
    counts = Counter(rows)
    assert sorted(counts[row] for row in range(40)) == [0] * 20 + [1] * 20
    assert [counts[row] for row in range(40, 50)] == [3] * 10
    small = [row for row in rows if row >= 40]
    assert len({tuple(small[start : start + 10]) for start in (0, 10, 20)}) == 3


# Errors


def test_more_least_rows_than_a_batch_holds_is_an_error():
    with pytest.raises(ValueError, match=r"asks for 16 rows of one set in a batch, but a batch holds 8\. Raise"):
        MixtureBatchSampler([50, 20], batch_size=8, least_rows=[1, 16])


@pytest.mark.parametrize(("sizes", "rows_per_epoch"), [([50, 0], None), ([50, 10], [50, 0])])
def test_a_set_without_any_row_is_an_error(sizes, rows_per_epoch):
    with pytest.raises(ValueError, match=r"an epoch would hold \[50, 0\] rows of the sets; each needs at least 1"):
        MixtureBatchSampler(sizes, batch_size=8, rows_per_epoch=rows_per_epoch)


# Sampling rules


@pytest.mark.parametrize(
    ("sampling", "options", "expected"),
    [
        ("proportional", {}, [900, 100, 400]),
        ("uniform", {}, [467, 467, 466]),
        ("sqrt", {}, [700, 233, 467]),  # 30 : 10 : 20
        ("temperature", {"temperature": 2.0}, [700, 233, 467]),
        ("temperature", {"temperature": 1}, [900, 100, 400]),
        ("temperature", {"temperature": 1e6}, [467, 466, 467]),
        ("temperature", {"temperature": 1e-3}, [1400, 0, 0]),  # no power of a size overflows
        ("rates", {"rates": [0.5, 0.3, 0.2]}, [700, 420, 280]),
    ],
)
def test_rule_deals_the_rows_of_an_epoch(sampling, options, expected):
    assert deal_rows(1400, set_weights([900, 100, 400], sampling, **options)) == expected


@pytest.mark.parametrize("seed", range(20))
def test_dealt_rows_add_up_and_are_within_one_of_their_quota(seed):
    generator = np.random.default_rng(seed)
    weights, total = generator.random(5) + 0.01, int(generator.integers(1, 100_000))
    rows = deal_rows(total, weights.tolist())
    assert sum(rows) == total
    assert (abs(np.array(rows) - total * weights / weights.sum()) < 1).all()


def test_proportional_rows_are_the_sizes_however_large():
    sizes = [999_999_937, 3, 45_615, 7]
    assert deal_rows(sum(sizes), set_weights(sizes, "proportional")) == sizes


# A part of a set


def test_first_rows_are_the_same_for_a_seed_and_differ_between_seeds_and_sets():
    rows = first_rows(1000, 100, which=1, seed=3)
    assert len(set(rows)) == 100
    assert rows == sorted(rows)
    assert rows == first_rows(1000, 100, which=1, seed=3)
    assert rows not in (first_rows(1000, 100, which=1, seed=4), first_rows(1000, 100, which=0, seed=3))
    assert set(rows) < set(first_rows(1000, 101, which=1, seed=3))
    assert abs(np.mean(rows) - 500) < 100


# One set per batch


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_single_set_batches_have_one_set_and_the_same_on_every_process(num_processes):
    sampler = MixtureBatchSampler([50, 7, 20, 1], 8, single_set=True, num_processes=num_processes)
    shares = dealt_out(sampler, num_processes)
    for step in zip(*shares, strict=True):
        rows = [row for batch in step for row in batch if row != FILLER_ROW]
        assert np.count_nonzero(rows_of_sets(sampler, rows)) == 1
    rows = [row for share in shares for batch in share for row in batch]
    assert sorted(row for row in rows if row != FILLER_ROW) == list(range(78))
    assert rows.count(FILLER_ROW) == num_processes - 1  # beside the one row of the last set


def test_single_set_batches_are_even_and_as_few_as_hold_the_rows():
    batches = list(MixtureBatchSampler([70], batch_size=16, single_set=True, num_processes=2))
    assert sorted(map(len, batches)) == [11, 11, 12, 12, 12, 12]


def test_single_set_batches_spread_every_set_over_the_epoch():
    sampler = MixtureBatchSampler([800, 200, 96], 8, single_set=True, num_processes=2)
    counts = np.array([rows_of_sets(sampler, batch) for batch in sampler])
    quarters = np.array([quarter.sum(axis=0) for quarter in np.array_split(counts, 4)]) / counts.sum(axis=0)
    assert (abs(quarters - 0.25) < 0.1).all()


# Anything


@pytest.mark.parametrize("seed", range(60))
def test_no_row_is_lost_or_doubled_for_any_sizes(seed):
    """Nor are there more batches than one per set beyond what the rows need, nor fewer rows together than promised."""
    generator = np.random.default_rng(seed)
    batch_size = int(generator.integers(1, 40))
    sizes = [int(size) for size in generator.integers(1, 400, size=generator.integers(1, 6))]
    least_rows = [int(least) for least in generator.integers(1, batch_size + 1, size=len(sizes))]
    num_processes = int(generator.integers(1, 5))
    single_set = bool(seed % 3 == 0)
    sampler = MixtureBatchSampler(sizes, batch_size, None, least_rows, single_set, num_processes, seed)
    pieces = least_pieces(sizes, least_rows, batch_size)
    if not single_set:
        assert sum(batch != [FILLER_ROW] for batch in sampler) <= -(-sum(sizes) // batch_size) + len(sizes)
    for epoch in range(2):
        shares = dealt_out(sampler, num_processes)
        batches = [batch for share in shares for batch in share]
        assert {len(share) for share in shares} == {len(sampler) // num_processes}
        assert sorted(row for batch in batches for row in batch if row != FILLER_ROW) == list(range(sum(sizes)))
        assert all(0 < len(batch) <= batch_size for batch in batches)
        counts = np.array([rows_of_sets(sampler, batch) for batch in batches])
        for which, (size, least) in enumerate(zip(sizes, least_rows, strict=True)):
            smallest = counts[:, which][counts[:, which] > 0].min()
            if single_set:
                assert (counts > 0).sum(axis=1).max() == 1
            else:
                assert smallest >= pieces[which]
                can_keep_together = size // least >= -(-size // batch_size)
                assert pieces[which] == least or not can_keep_together
        sampler.set_epoch(epoch + 1)
