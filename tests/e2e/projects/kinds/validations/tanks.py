"""What a tank's reading must be like."""

import great_expectations as gx
from great_expectations import expectations as gxe


def rows() -> gx.ExpectationSuite:
    return gx.ExpectationSuite("rows", [gxe.ExpectColumnValuesToNotBeNull(column="tank")])
