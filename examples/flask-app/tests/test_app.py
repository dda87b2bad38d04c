import unittest

from app import app
from rates import BASE, PER_KILO


class Prices(unittest.TestCase):
    def test_begun_kilograms_count(self):
        answer = app.test_client().get("/price?kilos=2.5")
        self.assertEqual(answer.json, {"cents": BASE + 3 * PER_KILO})

    def test_what_is_no_parcel_is_refused(self):
        for kilos in ("0", "31", "heavy"):
            self.assertEqual(app.test_client().get(f"/price?kilos={kilos}").status_code, 400)


if __name__ == "__main__":
    unittest.main()
