"""Whether a TorchForce can be had here, and making one."""

import logging
import re
import subprocess
import sys
from functools import lru_cache
from importlib import metadata

import openmm
import torch
from packaging.requirements import Requirement

from openmm_cgflow.errors import UnsupportedForceError

__all__ = ["make_torch_force", "why_no_torch_force"]

_log = logging.getLogger("openmm_cgflow")

# All that createForce's users do with a TorchForce; where a combination of versions is wrong, some of it crashes.
_PROBE = """
import torch, copy
import openmm, openmmtorch
class Spring(torch.nn.Module):
    def forward(self, x, k):
        return k * (x * x).sum()
module = torch.jit.trace(Spring(), (torch.zeros(1, 3), torch.tensor(2.0)))  # which needs no source, as script does
force = openmmtorch.TorchForce(module)
force.addGlobalParameter("k", 2.0)
system = openmm.System()
system.addParticle(1.0)
system.addForce(force)
system = copy.deepcopy(openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system)))
context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
context.setPositions([openmm.Vec3(1, 2, 3)])
state = context.getState(energy=True, forces=True)
assert abs(state.getPotentialEnergy()._value - 28) < 1e-6
assert abs(state.getForces()[0][2]._value + 12) < 1e-6
"""


def _tested() -> list[Requirement]:
    """The combination in which everything works: the extra `torchforce` of this package's metadata."""
    try:
        lines = metadata.requires("openmm_cgflow") or []
    except metadata.PackageNotFoundError:  # not installed, but found on PYTHONPATH
        return []
    extra = (Requirement(line) for line in lines if line.endswith('extra == "torchforce"'))
    return [Requirement(f"{each.name}{each.specifier}") for each in extra]


@lru_cache(maxsize=1)
def why_no_torch_force() -> str | None:
    """None if a TorchForce works here; else why not, and what to do.

    A combination of versions that was not tried before is tried in a process of its own, for a wrong one crashes.
    """
    tested = _tested()
    pins = " ".join(f'"{each}"' for each in tested) or '"openmm_cgflow[torchforce]"'
    packages = metadata.packages_distributions().get("openmmtorch", [])  # it has several builds, by their own names
    if not packages:
        return f"openmmtorch is not installed; pip install {pins} works."
    plugin = packages[0]
    here = {
        "torch": torch.__version__,
        "openmm": openmm.Platform.getOpenMMVersion(),
        plugin: metadata.version(plugin),
    }
    if tested and all(each.name in here and each.specifier.contains(here[each.name]) for each in tested):
        return None
    _log.info("trying out TorchForce with %s", here)
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=300, check=False)
    if probe.returncode == 0:
        return None
    lines = probe.stderr.strip().splitlines()
    reason = lines[-1] if lines and probe.returncode > 0 else f"it ended by signal {-probe.returncode}"
    versions = ", ".join(f"{name} {number}" for name, number in here.items())
    return f"TorchForce does not work with {versions} ({reason}); pip install {pins} works."


def make_torch_force(module: torch.jit.ScriptModule) -> openmm.Force:
    """A TorchForce of a scripted module.

    Raises:
        UnsupportedForceError: where TorchForce does not work; says which versions do.
    """
    reason = why_no_torch_force()
    if reason is not None:
        raise UnsupportedForceError(reason)
    import openmmtorch

    _load_plugin()
    return openmmtorch.TorchForce(module)


@lru_cache(maxsize=1)
def _load_plugin() -> None:
    """Load the plugin's kernels, which OpenMM could not do if it was imported before torch."""
    for failure in openmm.Platform.getPluginLoadFailures():
        found = re.search(r"Error loading library (.*OpenMMTorch[^/\\]*?): ", failure)
        if found:
            try:
                openmm.Platform.loadPluginLibrary(found[1])
            except openmm.OpenMMException as error:  # that of a GPU, where there is none
                _log.debug("%s", error)
