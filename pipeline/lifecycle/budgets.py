"""Budgets: what may be spent in a day or a month, by one service or by all together."""

from collections.abc import Mapping
from decimal import Decimal

from pipeline import prices
from pipeline.errors import FieldError, InvalidInput
from pipeline.lifecycle.services import NONE
from pipeline.runtime import Runtime
from pipeline.store import budgets
from pipeline.store.budgets import Period


def limits(said: Mapping[Period, str]) -> dict[Period, Decimal | None]:
    """
    Read the limits that a person typed: US dollars, or NONE.

    Raises:
        InvalidInput: Its `errors` name every wrong one by its period.
    """
    found = {period: None if text == NONE else prices.amount(text) for period, text in said.items()}
    wrong = [period for period, text in said.items() if text != NONE and found[period] is None]
    if wrong:
        raise InvalidInput(errors=[FieldError(period, prices.ODD_AMOUNT.format(said[period])) for period in wrong])
    return found


def limit(rt: Runtime, scope: str, wanted: Mapping[Period, Decimal | None]) -> None:
    """
    Limit what a *scope* may spend (a service's id, or ACCOUNT), in periods; None ends a limit.

    What is reserved or was spent in this period already counts.
    """
    for period, usd in wanted.items():
        if usd is None:
            with rt.db.transaction() as tx:
                budgets.close(tx, scope, period)
            continue
        with rt.db.transaction() as tx:
            budgets.open_(tx, scope, period, usd)
        with rt.db.transaction() as tx:  # the first holds up everybody, and this may take a while
            budgets.catch_up(tx)
