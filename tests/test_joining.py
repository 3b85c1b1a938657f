"""Measures joined to a trained network: their regression, and what both say together."""

import numpy as np
import pytest
import torch
from measured_cases import make_cases, without_masks
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch import nn

from tomokit.errors import TomokitError
from tomokit.joining import fit_measures
from tomokit.networks import MeasuresAdded
from tomokit.rivals import feature_table, make_classifier


@pytest.fixture
def entries(tmp_path):
    return make_cases(tmp_path)


def measured_logits(network, table):
    """Return the logits of the measures' regression alone (cases, C): twice the mean with a network of zeros."""
    with torch.no_grad():
        return 2 * network(torch.zeros(len(table), network.fc.out_features), torch.from_numpy(table).float())


def test_classes_get_the_logits_of_the_rivals_regression(entries):
    given = without_masks(entries)
    _, table = feature_table(given, 0.5)
    classes = np.array([entry["label"] for entry in given])
    for targets in (classes, np.arange(len(given)) % 3):  # of two classes and of three
        labelled = [{**entry, "label": int(label)} for entry, label in zip(given, targets, strict=True)]
        network = MeasuresAdded(nn.Flatten(), table.shape[1], int(targets.max()) + 1)
        fit_measures(network, labelled, 0.5)
        expected = make_classifier("logistic").fit(table, targets).predict_proba(table)
        found = measured_logits(network, table).softmax(1)
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
    varies = np.ptp(table, axis=0) > 1e-6
    assert varies.any() and not varies.all()  # each is of one piece
    loaded = MeasuresAdded(nn.Flatten(), table.shape[1], 3)
    loaded.load_state_dict(network.state_dict())
    torch.testing.assert_close(measured_logits(loaded, table), measured_logits(network, table))


def test_labels_get_a_regression_each_and_a_value_a_ridge(entries):
    given = without_masks(entries)
    _, table = feature_table(given, 0.5)
    flags = np.array([[place % 2, place < 3] for place in range(len(given))], int)
    labelled = [{**entry, "label": own.tolist()} for entry, own in zip(given, flags, strict=True)]
    network = MeasuresAdded(nn.Flatten(), table.shape[1], 2)
    fit_measures(network, labelled, 0.5, "labels")
    expected = [make_classifier("logistic").fit(table, own).predict_proba(table)[:, 1] for own in flags.T]
    np.testing.assert_allclose(measured_logits(network, table).sigmoid().numpy(), np.transpose(expected), atol=1e-3)
    ages = 50.0 + 3 * np.arange(len(given))
    network = MeasuresAdded(nn.Flatten(), table.shape[1], 1)
    fit_measures(network, [{**entry, "label": age} for entry, age in zip(given, ages, strict=True)], 0.5, "value")
    standardised = StandardScaler().fit_transform(ages[:, None])[:, 0]
    expected = Ridge().fit(StandardScaler().fit_transform(table), standardised)
    found = measured_logits(network, table)[:, 0].numpy()
    np.testing.assert_allclose(found, expected.predict(StandardScaler().fit_transform(table)), atol=1e-3)


def test_the_logits_of_network_and_measures_are_averaged():
    network, logits = MeasuresAdded(nn.Flatten(), 3, 2), torch.randn(4, 2)
    image = logits.view(4, 1, 2, 1, 1)
    measures = torch.tensor([[1.0, 3.0, 5.0]]).expand(4, 3)
    with torch.no_grad():
        network.fc.weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
        network.fc.bias.copy_(torch.tensor([7.0, 0.0]))
        network.mean.fill_(1)
        network.deviation.fill_(2)
        both = (logits + torch.tensor([7.0, 3.0])) / 2
        torch.testing.assert_close(network(image, measures), both)
        torch.testing.assert_close(torch.jit.script(network)(image, measures), both)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(network(image, measures), both)


def test_what_no_regression_can_be_fitted_to_is_named(entries):
    given = without_masks(entries)
    count = feature_table(given, 0.5)[1].shape[1]
    with pytest.raises(TomokitError, match="fitted to the class 2: all training cases have it, or none has; leave"):
        fit_measures(MeasuresAdded(nn.Flatten(), count, 3), given, 0.5)
    labelled = [{**entry, "label": [place % 2, 1]} for place, entry in enumerate(given)]
    with pytest.raises(TomokitError, match="fitted to the label 1: all training cases have it"):
        fit_measures(MeasuresAdded(nn.Flatten(), count, 2), labelled, 0.5, "labels")
    with pytest.raises(TomokitError, match="task"):
        fit_measures(MeasuresAdded(nn.Flatten(), count, 2), given, 0.5, "survival")


def test_other_measures_than_the_networks_are_refused(entries):
    network = MeasuresAdded(nn.Flatten(), 3, 2)
    with pytest.raises(TomokitError, match=r"a case must have 3 measures, got shape \(4, 5\)"):
        network(torch.zeros(4, 2), torch.zeros(4, 5))
    with pytest.raises(TomokitError, match="measures, the network takes 3; set `mask_key: mask`"):
        fit_measures(network, entries)
