"""What an order must be like."""

import great_expectations as gx
from great_expectations import expectations as gxe


def orders() -> gx.ExpectationSuite:
    return gx.ExpectationSuite("orders", [gxe.ExpectColumnValuesToNotBeNull(column="shop", mostly=0.99)])
