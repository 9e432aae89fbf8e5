from nnfx.tables import table


def test_words_stand_left_and_numbers_right():
    drawn = table(["name", "kind", "size"], [["a", "bcdefg", 1.23456], ["long name", "h", 12]], words=2)
    assert drawn.splitlines() == [
        "name       kind     size",
        "---------  ------  -----",
        "a          bcdefg  1.235",
        "long name  h          12",
    ]


def test_numbers_alone():
    assert table(["n", "value"], [[1, 0.5]], words=0).splitlines() == ["n  value", "-  -----", "1    0.5"]
