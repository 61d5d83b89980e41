"""What a window's readings must be like."""

import great_expectations as gx
from great_expectations import expectations as gxe


def readings() -> gx.ExpectationSuite:
    return gx.ExpectationSuite("readings", [gxe.ExpectColumnValuesToNotBeNull(column="pump")])
