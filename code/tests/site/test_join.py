from rundoku.site.render import join_lines


def test_lines_of_wide_characters_join_and_others_do_not():
    assert join_lines("<p>注意機構\nの計算、\n次に\nsoftmax を\n使う。</p>") == "<p>注意機構の計算、次に\nsoftmax を使う。</p>"
    assert join_lines("<p>one\ntwo</p>") == "<p>one\ntwo</p>"


def test_code_keeps_its_lines():
    assert join_lines("<pre># 注意\n機構</pre><p>注意\n機構</p>") == "<pre># 注意\n機構</pre><p>注意機構</p>"
