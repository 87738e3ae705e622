import os
from concurrent.futures import ThreadPoolExecutor

HEAD = "import os, pathlib, time\nfrom rundoku.show import experiment\n\n\n@experiment\n"


def test_several_runs_go_side_by_side_and_are_each_kept_once(toy):
    write = "    pathlib.Path(f'ran-{number}').open('a').write(f'{os.getpid()}\\n')\n    time.sleep(0.5)\n"
    source = f"{HEAD}def one(*, number):\n{write}    return {{'number': number}}\n"
    (toy.room / "experiments.py").write_text(source, encoding="utf-8")
    code = (
        "from rundoku.papers.lora.experiments import one\n"
        "print([found.number for found in one.each({'number': n} for n in range(4))], one(number=3).number)"
    )
    for _ in range(2):
        assert toy.python(code) == "[0, 1, 2, 3] 3\n"
    ran = [(toy.root / f"ran-{number}").read_text(encoding="utf-8").split() for number in range(4)]
    assert all(len(processes) == 1 for processes in ran)
    assert len(os.sched_getaffinity(0)) == 1 or len({process for (process,) in ran}) > 1


def test_two_processes_that_want_the_same_run_share_it(toy):
    write = "    pathlib.Path('ran').open('a').write('x')\n    time.sleep(1)\n"
    source = f"{HEAD}def slow(*, seed):\n{write}    return {{'seed': seed}}\n"
    (toy.room / "experiments.py").write_text(source, encoding="utf-8")
    code = "from rundoku.papers.lora.experiments import slow\nprint(slow(seed=7).seed)"
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(toy.python, [code, code])) == ["7\n", "7\n"]
    assert (toy.root / "ran").read_text(encoding="utf-8") == "x"
