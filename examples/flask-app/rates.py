"""What a parcel costs, in cents."""

BASE = 350
PER_KILO = 120


def price(kilos: float) -> int:
    """The price of a parcel of `kilos`, each begun kilogram counted."""
    if not 0 < kilos <= 30:
        raise ValueError("a parcel has more than 0 and at most 30 kg")
    return BASE + PER_KILO * int(-(-kilos // 1))
