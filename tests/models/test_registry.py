"""The registry of models."""

import pytest

from fastvggt_jax import VGGT, Pi3, Pi3X, errors
from fastvggt_jax.models import registry
from tests.toys.model import PATH, Toy


def test_a_model_is_found_by_its_name_and_by_its_classs():
    assert registry.find("vggt") is registry.of_class("VGGT") is VGGT
    assert registry.find("pi3") is registry.of_class("Pi3") is Pi3
    assert registry.find("pi3x") is registry.of_class("Pi3X") is Pi3X
    assert [registry.name_of(model) for model in (VGGT, Pi3, Pi3X)] == ["vggt", "pi3", "pi3x"]
    with pytest.raises(errors.InputError, match="no model 'VGGT'; there are vggt, pi3, pi3x"):
        registry.find("VGGT")
    with pytest.raises(errors.InputError, match="no model's class is called 'vggt'"):
        registry.of_class("vggt")


@pytest.mark.parametrize("thing", [PATH, Toy])
def test_a_model_is_registered_and_gone_again(thing):
    with pytest.raises(errors.InputError, match=r"register\(name, 'tests.toys.model:Toy'\)"):
        registry.name_of(Toy)
    with registry.registered("toy", thing):
        assert registry.find("toy") is registry.of_class("Toy") is Toy and registry.name_of(Toy()) == "toy"
    assert registry.names() == ("vggt", "pi3", "pi3x")
