"""Which methods requests may bring for themselves (`use` in their body): those that whoever runs the server allows."""

from collections.abc import Sequence

from headstart.engine.stack import why_for_all
from headstart.errors import HeadstartError, MethodError
from headstart.methods import registry
from headstart.server.errors import ApiError

FLAG = "--allow-use"


class OwnMethods:
    """The methods that requests may bring, each with the options that it may have.

    Args:
        allowed: as `--use` takes them; none lets no request choose.

    Raises:
        HeadstartError: one that there is not, or that only a whole engine can have.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self.allowed = list(dict.fromkeys(each.strip() for each in allowed))
        # By both of its names: as it was given, and with all its options.
        self._known: dict[str, str] = {}
        for each in self.allowed:
            made = registry.build(each, "inference")
            if why := why_for_all(made):
                raise HeadstartError(f"{FLAG} {each}: {made.card.key} cannot be one request's own, since {why}")
            self._known |= {each: each, registry.describe(made): each}

    def check(self, use: Sequence[str] | None) -> tuple[str, ...] | None:
        """A request's methods as the engine is to have them.

        Raises:
            ApiError: 400, for one that it may not bring.
        """
        if use is None:
            return None
        if not self.allowed:
            raise _refusal(
                f"requests choose no methods of their own on this server: it would have to be started with {FLAG}"
            )
        return tuple(self._found(each) for each in use)

    def _found(self, use: str) -> str:
        known = self._known.get(use.strip())
        if known is not None:
            return known
        key = use.partition(":")[0].strip()
        try:
            card = registry.usable(key, "inference")
        except MethodError as error:
            raise _refusal(str(error)) from None
        if why := why_for_all(card.implementation):
            raise _refusal(f"{key} cannot be one request's own, since {why}; the whole server can have it, as --use")
        raise _refusal(
            f"{use!r} is not among what requests may choose here, which is {', '.join(self.allowed)}: the server would "
            f"have to be started with {FLAG} {use}"
        )


def _refusal(message: str) -> ApiError:
    return ApiError(400, message, param="use", code="method_not_allowed")
