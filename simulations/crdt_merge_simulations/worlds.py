"""Which world carries a plan out: engines alone, whole daemons, or real processes."""

from __future__ import annotations

from crdt_merge_node.errors import ConfigError

from .plan import FIDELITIES, Plan
from .result import Result


def run(plan: Plan) -> Result:
    """Carry out a plan in the world that its scenario names.

    Raises:
        ConfigError: Real processes are asked for, which take a command of their own, or an unknown world.
    """
    match plan.scenario.fidelity:
        case "engine":
            from . import engine_world

            return engine_world.run(plan)
        case "daemon":
            from . import daemon_world

            return daemon_world.run(plan)
        case "process":
            raise ConfigError(
                "Real processes run in real time and do not replay.", hint="Use: crdt-merge-sim cluster."
            )
    raise ConfigError(
        f"There is no fidelity {plan.scenario.fidelity!r}.", hint=f"Known: {', '.join(FIDELITIES)}."
    )
