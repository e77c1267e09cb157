"""The numbers transformers prints for weights by formula, reproduced without PyTorch."""

import numpy as np
import pytest

from tests.golden.fill import GOLDEN, golden_model, golden_params

# Six decimals are recorded.
CLOSE = {"rtol": 0, "atol": 5e-6}


@pytest.mark.parametrize("name", GOLDEN["columns"])
def test_forward_pass_gives_the_recorded_numbers(name):
    model, expected = golden_model(name), GOLDEN["forward"][name]
    inputs = {key: np.array(value) for key, value in GOLDEN["inputs"].items()}
    mask = inputs["input_ids"] != model.config.pad_token_id
    out = model.apply({"params": golden_params(model)}, attention_mask=mask, **inputs)
    encoded, logits = np.asarray(out.encoder_last_hidden_state), np.asarray(out.logits, np.float64)
    np.testing.assert_allclose(encoded[0, 0, :4], expected["encoded[0,0,:4]"], **CLOSE)
    np.testing.assert_allclose(encoded[1, 2, :4], expected["encoded[1,2,:4]"], **CLOSE)
    np.testing.assert_allclose(logits[0, 0, :6], expected["logits[0,0,:6]"], **CLOSE)
    np.testing.assert_allclose(logits[1, 2, :6], expected["logits[1,2,:6]"], **CLOSE)
    # sums of 192 logits, each within 5e-6
    np.testing.assert_allclose(logits.sum(), expected["sum"], atol=2e-4)
    np.testing.assert_allclose(np.abs(logits).sum(), expected["sum_abs"], atol=2e-4)
    np.testing.assert_allclose(float(out.loss), expected["loss"], **CLOSE)


def test_scaling_the_small_decoder_changes_the_logits():
    scaled, unscaled = (GOLDEN["forward"][name]["logits[1,2,:6]"] for name in ("small_scaled", "small_unscaled"))
    assert np.abs(np.subtract(scaled, unscaled)).max() > 4 * CLOSE["atol"]
