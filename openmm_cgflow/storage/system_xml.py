"""Systems as OpenMM XML, of which OpenMM is only given what was understood here and written anew.

Some kinds of force are programs: the XML of a PythonForce holds a pickle, that of a TorchForce TorchScript, and plugins
bring more. OpenMM builds whatever kind an element's `type` names, with a parser of its own that reads comments,
processing instructions and references otherwise than the standard does. So the text is read by expat, refused
unless it is what OpenMM itself writes, and OpenMM gets a plain copy: elements and attributes, nothing else.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any
from xml.parsers import expat

import openmm

from openmm_cgflow.errors import ModelFileError, UnsupportedForceError
from openmm_cgflow.potentials.terms.limits import check_size

__all__ = ["check_storable", "digest_of", "system_from_xml", "system_to_xml"]

NATIVE = frozenset(
    {
        "System",
        # forces
        "AmoebaGeneralizedKirkwoodForce", "AmoebaMultipoleForce", "AmoebaTorsionTorsionForce", "AmoebaVdwForce",
        "AmoebaWcaDispersionForce", "AndersenThermostat", "ATMForce", "CMAPTorsionForce", "CMMotionRemover",
        "ConstantPotentialForce", "CustomAngleForce", "CustomBondForce", "CustomCentroidBondForce",
        "CustomCompoundBondForce", "CustomCVForce", "CustomExternalForce", "CustomGBForce", "CustomHbondForce",
        "CustomManyParticleForce", "CustomNonbondedForce", "CustomTorsionForce", "CustomVolumeForce", "DrudeForce",
        "GayBerneForce", "GBSAOBCForce", "HarmonicAngleForce", "HarmonicBondForce", "HippoNonbondedForce",
        "LCPOForce", "MonteCarloAnisotropicBarostat", "MonteCarloBarostat", "MonteCarloFlexibleBarostat",
        "MonteCarloMembraneBarostat", "NonbondedForce", "OrientationRestraintForce", "PeriodicTorsionForce",
        "RBTorsionForce", "RGForce", "RMSDForce",
        # tabulated functions
        "Continuous1DFunction", "Continuous2DFunction", "Continuous3DFunction", "Discrete1DFunction",
        "Discrete2DFunction", "Discrete3DFunction",
    }
)  # fmt: skip
"""Kinds of object that are numbers and formulas, and no programs."""

MEMBERS = {
    "System": frozenset({"System"}),
    "Force": frozenset(name for name in NATIVE if name != "System" and not name.endswith("Function")),
    "Function": frozenset(name for name in NATIVE if name.endswith("Function")),
}
"""What an element of this name may be, if its `type` says that it is an object."""

MOST_BYTES = 256 * 2**20
MOST_ELEMENTS = 3_000_000
DEEPEST = 40
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,79}")
_WHOLE = re.compile(r"-?[0-9]{1,9}")
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&apos;", "\n": " ", "\t": " ", "\r": " "}
)
_WRITTEN_BY = re.compile(r' openmmVersion=\\"[^"\\]*\\"')  # in XML as JSON holds it
_WAY_OUT = "Build the System in your script and give it to CGFlow."


def system_to_xml(system: openmm.System) -> str:
    """The System as OpenMM XML."""
    return openmm.XmlSerializer.serialize(system)


def digest_of(parts: Sequence[Any], with_version: bool = False) -> str:
    """A digest of values, Systems as XML among them, whatever version of OpenMM these name.

    Arguments:
        parts: what JSON can hold.
        with_version: let the version of OpenMM count, as it does in older files.

    Example:
        >>> digest_of(['<System openmmVersion="8.4" a="1">']) == digest_of(['<System openmmVersion="8.5" a="1">'])
        True
    """
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256((text if with_version else _WRITTEN_BY.sub("", text)).encode()).hexdigest()


def system_from_xml(xml: str | bytes) -> openmm.System:
    """The System of an OpenMM XML, without running anything that is in it.

    Arguments:
        xml: text, or bytes in UTF-8.

    Raises:
        ModelFileError: if it is no System as OpenMM writes it, or holds a force that is not OpenMM's own, such as a
            PythonForce or TorchForce, whose XML holds a program.

    Example:
        >>> system_from_xml(system_to_xml(openmm.System())).getNumParticles()
        0
    """
    text = _Copy().of(xml)
    try:
        system = openmm.XmlSerializer.deserializeSystem(text)
    except Exception as error:
        raise ModelFileError(f"the System's XML is damaged: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(system, openmm.System):
        raise ModelFileError("the XML holds no System.")
    return system


def check_storable(system: openmm.System) -> None:
    """See that a System can be stored, and will be read again.

    Raises:
        ModelFileError: if it cannot; the message names the force.
    """
    try:
        xml = system_to_xml(system)
    except Exception as error:
        raise ModelFileError(
            f"the System cannot be stored: OpenMM says {' '.join(str(error).split())[:300]}. {_WAY_OUT}"
        ) from error
    system_from_xml(xml)


class _Copy:
    """What expat finds, written anew."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._depth = self._elements = 0
        self._root: str | None = None
        self._parser = expat.ParserCreate("utf-8")  # whatever the text itself declares
        self._parser.buffer_text = True
        self._parser.ordered_attributes = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.XmlDeclHandler = self._declaration
        self._parser.StartDoctypeDeclHandler = self._refuse("a document type")
        self._parser.EntityDeclHandler = self._refuse("an entity")
        self._parser.CommentHandler = self._refuse("a comment")
        self._parser.ProcessingInstructionHandler = self._refuse("a processing instruction")
        self._parser.StartCdataSectionHandler = self._refuse("a CDATA section")

    def of(self, xml: str | bytes) -> str:
        """The copy."""
        if len(xml) > MOST_BYTES:
            raise ModelFileError(f"the System's XML has {len(xml):,} bytes; up to {MOST_BYTES:,} are read.")
        try:
            self._parser.Parse(xml.encode("utf-8") if isinstance(xml, str) else xml, True)
        except UnicodeError as error:
            raise ModelFileError(f"the System's XML is not text in UTF-8: {error}") from error
        except expat.ExpatError as error:
            raise ModelFileError(f"the System's XML is damaged: {error}") from error
        if self._root != "System":
            raise ModelFileError('the XML holds no System as OpenMM writes it: its root lacks type="System".')
        return "".join(self._parts)

    @staticmethod
    def _refuse(what: str) -> Callable[..., None]:
        def refuse(*_: object) -> None:
            raise ModelFileError(
                f"the System's XML holds {what}, which OpenMM does not write; take it out, or write the System anew "
                "with openmm.XmlSerializer.serialize."
            )

        return refuse

    @staticmethod
    def _declaration(version: str, encoding: str | None, standalone: int) -> None:
        if encoding is not None and encoding.lower() not in ("utf-8", "us-ascii", "ascii"):
            raise ModelFileError(f"the System's XML is declared as {encoding[:40]!r}; give it in UTF-8.")

    def _text(self, text: str) -> None:
        if text.strip():
            raise ModelFileError(f"the System's XML holds the text {text.strip()[:40]!r}, where OpenMM writes none.")

    def _start(self, name: str, attributes: list[str]) -> None:
        self._depth += 1
        self._elements += 1
        if self._depth > DEEPEST or self._elements > MOST_ELEMENTS:
            raise ModelFileError(
                f"the System's XML has more than {DEEPEST} levels or {MOST_ELEMENTS:,} elements, which are not read."
            )
        pairs = list(zip(attributes[::2], attributes[1::2], strict=True))
        for word in (name, *attributes[::2]):
            if not _NAME.fullmatch(word):
                raise ModelFileError(f"the System's XML has the name {word[:40]!r}, which OpenMM does not write.")
        kind = dict(pairs).get("type")
        if self._depth == 1:
            if name != "System":
                raise ModelFileError(f"the XML holds a {(kind or name)[:60]}, not a System.")
            self._root = kind
        if kind is not None and not _WHOLE.fullmatch(kind):
            self._check_kind(name, kind)
        written = "".join(f' {key}="{self._value(key, value)}"' for key, value in pairs)
        self._parts.append(f"<{name}{written}>\n")

    def _check_kind(self, name: str, kind: str) -> None:
        if kind not in NATIVE:
            raise ModelFileError(
                f"the System holds a {kind[:60]}, which is not one of OpenMM's own forces: its XML may hold a program, "
                f"and reading it would run code, so it is neither stored nor read. {_WAY_OUT}"
            )
        if kind not in MEMBERS.get(name, NATIVE) or (kind == "System" and self._depth > 1):
            raise ModelFileError(f"the System's XML has a {kind} where a {name} belongs.")

    @staticmethod
    def _value(key: str, value: str) -> str:
        try:
            check_size(value)
        except UnsupportedForceError as error:
            raise ModelFileError(f"the System has an attribute {key} that is too much: {error}") from error
        return value.translate(_ESCAPES)

    def _end(self, name: str) -> None:
        self._depth -= 1
        self._parts.append(f"</{name}>\n")
