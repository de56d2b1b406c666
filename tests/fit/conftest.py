"""What is compiled for chips that are not there cannot be read again."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope="module", autouse=True)
def no_compiled_programs(_nothing_of_other_modules):
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
