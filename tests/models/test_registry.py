"""The registry of models."""

import pytest

from fastvggt_jax import VGGT, Pi3, errors
from fastvggt_jax.models import registry
from tests.toys.model import Toy

TOY = "tests.toys.model:Toy"


def test_a_model_is_found_by_its_name_and_by_its_classs():
    assert registry.find("vggt") is registry.find("VGGT") is VGGT
    assert registry.find("pi3") is registry.find("Pi3") is Pi3
    assert [registry.name_of(model) for model in (VGGT, Pi3)] == ["vggt", "pi3"]
    with pytest.raises(errors.InputError, match="no model 'Vggt'; there are vggt, pi3"):
        registry.find("Vggt")


def test_a_model_is_registered_and_gone_again():
    with pytest.raises(errors.InputError, match=r"register\(name, 'tests.toys.model:Toy'\)"):
        registry.name_of(Toy)
    with registry.registered("toy", TOY):
        assert registry.find("toy") is Toy and registry.name_of(Toy()) == "toy"
    assert registry.names() == ("vggt", "pi3")


def test_a_name_that_is_taken_comes_back():
    with registry.registered("vggt", TOY):
        assert registry.find("vggt") is Toy
    assert registry.find("vggt") is VGGT
