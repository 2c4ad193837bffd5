"""The examples, run as their readers run them."""

import pytest

pytest.register_assert_rewrite("tests.examples.web_contract")
