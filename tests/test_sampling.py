from collections import Counter

import pytest
from monai.data import Dataset
from torch.utils.data import DistributedSampler

from tomokit.engines import make_balanced_sampler
from tomokit.engines.sampling import BalancedSampler
from tomokit.errors import TomokitError

CLASSES = [0] * 50 + [1] * 10 + [2] * 4


def epoch_of(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


def make(count=1, rank=0, seed=0):
    return BalancedSampler(Dataset(list(range(64))), CLASSES, count, rank, seed)


def test_each_class_is_drawn_equally_often_and_its_cases_too():
    for epoch in (1, 2, 3):
        places = epoch_of(make(), epoch)
        drawn = Counter(CLASSES[place] for place in places)
        assert len(places) == 64 and sorted(drawn.values()) == [21, 21, 22]
        times = Counter(places)
        assert max(times[place] for place in range(50)) == 1
        for rare in (range(50, 60), range(60, 64)):
            own = [times[place] for place in rare]
            assert max(own) - min(own) <= 1 and min(own) >= 2


def test_the_order_follows_from_seed_and_epoch_and_no_class_comes_first():
    sampler = make()
    first, second = epoch_of(sampler, 1), epoch_of(sampler, 2)
    assert epoch_of(sampler, 1) == first == epoch_of(make(), 1) != second
    assert epoch_of(make(seed=7), 1) != first
    assert len({CLASSES[place] for place in first[:16]}) == 3
    common = [{place for place in places if place < 50} for places in (first, second)]
    assert common[0] != common[1]  # another part of the common class in each epoch


def test_processes_share_an_epoch():
    parts = [epoch_of(make(count=3, rank=rank), 1) for rank in range(3)]
    assert [len(part) for part in parts] == [len(make(count=3))] * 3 == [22] * 3
    drawn = Counter(CLASSES[place] for part in parts for place in part)
    assert sorted(drawn.values()) == [22, 22, 22]
    assert max(Counter(place for part in parts for place in part if place < 50).values()) == 1


def test_a_sampler_of_entries_is_one_that_monais_trainer_tells_the_epoch():
    entries = [{"case": f"c{i}", "label": value} for i, value in enumerate(CLASSES)]
    sampler = make_balanced_sampler(Dataset(list(range(64))), entries, seed=3)
    assert isinstance(sampler, DistributedSampler) and len(sampler) == 64
    assert epoch_of(sampler, 5) == epoch_of(make(seed=3), 5)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ([0, 1], r"a class as `label` of each case, got \[0, 1\] for c1; leave the layer"),
        (0.5, "got 0.5 for c1"),
        (True, "got True for c1"),
        (4, r"training cases of two classes, got only \[4\]"),
    ],
)
def test_what_has_no_classes_is_not_balanced(label, message):
    entries = [{"case": "c0", "label": 4}, {"case": "c1", "label": label}]
    with pytest.raises(TomokitError, match=message):
        make_balanced_sampler(Dataset([0, 1]), entries, 0)
