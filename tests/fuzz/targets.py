"""What reads damaged files, below the place where every surprise is turned into the one error."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuzz.mutate import EXPRESSION_WORDS, JSON_WORDS, XML_WORDS, damaged, damaged_tree
from fuzz.seeds import EXPRESSIONS, RAN, force_field, hostile_system, model, peroxide
from openmm_cgflow import storage
from openmm_cgflow.errors import CGFlowError, ModelFileError, UnsupportedForceError
from openmm_cgflow.force_field import CGForceField
from openmm_cgflow.potentials.terms.lepton import Expression
from openmm_cgflow.storage.container import _header_length
from openmm_cgflow.trained.stored import StoredModel, check_network, molecule_of


@dataclass
class Files:
    """What is fine, and to be damaged.

    Attributes:
        models: files of models.
        checkpoints: files that hold the same as checkpoints.
        systems: XML.
        force_fields: files of force fields of beads.
        parts: tensors and description of each model.
    """

    models: list[bytes]
    checkpoints: list[bytes]
    systems: list[bytes]
    force_fields: list[bytes]
    parts: list[tuple[dict[str, Tensor], str]] = field(init=False)

    def __post_init__(self) -> None:
        both = [storage.unpack(data, "model") for data in self.models]
        self.parts = [(tensors, json.dumps(header)) for tensors, header in both]

    @classmethod
    def make(cls) -> "Files":
        """Of hydrogen peroxide."""
        molecule = peroxide()
        made = model(*molecule)
        tensors, header = storage.unpack(made, "model")
        state = {k: v for k, v in header.items() if k in ("history", "seconds", "seed")} | {"identity": "0" * 64}
        checkpoint = storage.pack("checkpoint", {f"average.{k}": t for k, t in tensors.items()}, state)
        systems = [storage.system_to_xml(molecule[1]).encode(), hostile_system().encode()]
        return cls([made], [checkpoint], systems, [force_field(*molecule)])


Accepted = type[Exception] | tuple[type[Exception], ...]


@dataclass
class Input:
    """One damaged thing.

    Attributes:
        target: what reads it.
        what: to be shown.
        read: reads it.
        accepted: the errors that may come of it.
    """

    target: str
    what: Any
    read: Callable[[], object]
    accepted: Accepted = ModelFileError


def make_input(files: Files, rng: random.Random, target: str = "") -> Input:
    """A damaged file, or formula: the same for the same random numbers.

    Arguments:
        files: what is damaged.
        rng: by which.
        target: `"force field"` for these files alone.
    """
    if target == "force field":
        return _force_field(files, rng)
    maker = rng.choices((_bytes, _declaration, _description, _xml, _expression, _force_field), (2, 2, 4, 6, 6, 2))[0]
    return maker(files, rng)


def _bytes(files: Files, rng: random.Random) -> Input:
    if rng.random() < 0.3:
        data = damaged(rng.choice(files.checkpoints), JSON_WORDS, rng)
        return Input("checkpoint", data, lambda: storage.unpack(data, "checkpoint"))
    data = damaged(rng.choice(files.models), JSON_WORDS, rng)
    return Input("model", data, lambda: read_model(data, networks=rng.random() < 0.02))


def _declaration(files: Files, rng: random.Random) -> Input:
    """The header of safetensors damaged, with the length that it then has."""
    kind = rng.choice(("model", "checkpoint"))
    data = rng.choice(files.models if kind == "model" else files.checkpoints)
    made = _declared_anew(data, rng)
    if kind == "model":
        return Input("model's tensors", made, lambda: read_model(made, networks=rng.random() < 0.02))
    return Input("checkpoint's tensors", made, lambda: storage.unpack(made, "checkpoint"))


def _declared_anew(data: bytes, rng: random.Random) -> bytes:
    """A file with another declaration of its tensors."""
    end = 8 + _header_length(data[:8], len(data))
    if rng.random() < 0.5:
        header = damaged(data[8:end], JSON_WORDS, rng)
    else:
        tree = json.loads(data[8:end])
        words = tree["__metadata__"].pop("header")
        tree = damaged_tree(json.dumps(tree), rng)
        if isinstance(tree.get("__metadata__"), dict):
            tree["__metadata__"]["header"] = words
        header = json.dumps(tree).encode()
    return len(header).to_bytes(8, "little") + header + data[end:]


def _description(files: Files, rng: random.Random) -> Input:
    """What a model says of itself damaged, in a container that is fine."""
    tensors, text = rng.choice(files.parts)
    tree = damaged_tree(text, rng)
    networks = rng.random() < 0.02

    def read() -> None:
        stored = storage.read_as(StoredModel, tree, "the description")
        molecule = molecule_of(stored, tensors)
        if networks:
            check_network(tensors, molecule.coordinates, stored.settings)

    return Input("model's description", tree, read)


def _force_field(files: Files, rng: random.Random) -> Input:
    """A force field with its bytes, its declaration of tensors or its description damaged."""
    data = rng.choice(files.force_fields)
    kind = rng.randrange(3)
    if kind == 0:
        made = damaged(data, JSON_WORDS, rng)
    elif kind == 1:
        made = _declared_anew(data, rng)
    else:
        tensors, header = storage.unpack(data, "force field")
        tree = damaged_tree(json.dumps(header), rng)
        return Input("force field's description", tree, lambda: read_force_field(tensors, tree), CGFlowError)
    name = "force field" if kind == 0 else "force field's tensors"
    return Input(name, made, lambda: read_force_field(*storage.unpack(made, "force field")), CGFlowError)


def read_force_field(tensors: dict[str, Tensor], header: Any) -> None:
    """A force field, whose energy at its positions is finite if it is read at all."""
    made = CGForceField._of(tensors, header)
    assert bool(torch.isfinite(made.student(torch.as_tensor(made.positions._value))))


def _xml(files: Files, rng: random.Random) -> Input:
    xml = damaged(rng.choice(files.systems), XML_WORDS, rng)
    return Input("System XML", xml, lambda: storage.system_from_xml(xml))


def _expression(files: Files, rng: random.Random) -> Input:
    text = damaged(rng.choice(EXPRESSIONS).encode(), EXPRESSION_WORDS, rng).decode("utf-8", "replace")
    return Input("expression", text, lambda: Expression(text), UnsupportedForceError)


def read_model(data: bytes, networks: bool) -> None:
    """A model up to where its potential would be built, or the networks as well."""
    tensors, header = storage.unpack(data, "model")
    stored = storage.read_as(StoredModel, header, "the description")
    molecule = molecule_of(stored, tensors)
    if networks:
        check_network(tensors, molecule.coordinates, stored.settings)


def outcome(made: Input) -> str:
    """`loaded`, `refused`, or what went wrong."""
    try:
        made.read()
    except made.accepted:
        result = "refused"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        result = f"{type(error).__name__}: {str(error)[:300]}"
    else:
        result = "loaded"
    if RAN:
        RAN.clear()
        return "code that was in it has run"
    return result
