from hypothesis import given
from hypothesis import strategies as st

from cloud_server.acceptance import count_accepted

TOKENS = st.integers(0, 3)


@given(
    st.lists(TOKENS, max_size=6).flatmap(
        lambda draft: st.tuples(
            st.just(draft), st.lists(TOKENS, min_size=len(draft) + 1, max_size=len(draft) + 1)
        )
    )
)
def test_accepts_exactly_the_common_prefix(case: tuple[list[int], list[int]]) -> None:
    draft, choices = case
    accepted = count_accepted(draft, choices)
    assert draft[:accepted] == choices[:accepted]
    assert accepted == len(draft) or draft[accepted] != choices[accepted]
