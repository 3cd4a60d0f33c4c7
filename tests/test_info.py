"""``ms-gpt info``, the doctor: every combination that is known to fail is named, with one command that mends it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ms_gpt.cli import machine as here
from ms_gpt.cli.doctor import CANN, NEEDED, Machine, diagnose
from ms_gpt.cli.machine import CUDA_LIBRARIES, Ascend

ROOT = Path(__file__).resolve().parents[1]
GOOD = {"mindspore": "2.10.0", "numpy": "1.26.4", "tokenizers": "0.22", "safetensors": "0.6", "rich": "14.0",
        "matplotlib": "3.10", "PyYAML": "6.0", "ftfy": "6.3"}
SCRIPT = "/usr/local/Ascend/cann/set_env.sh"


def problems(packages=(), python=(3, 11), compiler="g++ 12", **facts):
    return diagnose(Machine(python=python, packages={**GOOD, **dict(packages)}, compiler=compiler, **facts))


@pytest.mark.parametrize("packages", [{}, {"torch": "2.13.0", "transformers": "5.1"}, {"numpy": "1.25.0"},
                                      {"mindspore": "2.7.0", "mindnlp": "0.5.1", "transformers": "4.57.1"}])
@pytest.mark.parametrize("python", [(3, 10), (3, 12)])
def test_nothing_is_wrong(packages, python):
    assert problems(packages, python) == []


@pytest.mark.parametrize(("packages", "facts", "problem", "fix"), [
    ({"numpy": "2.1.0"}, {}, "numpy 2.1.0", 'python -m pip install "numpy>=1.25,<2"'),
    ({"mindspore": None}, {"python": (3, 13)}, "Python 3.13", "conda create -n ms-gpt python=3.11"),
    ({}, {"python": (3, 9)}, "Python 3.9", "conda create -n ms-gpt python=3.11"),
    ({"mindspore": None}, {}, "not installed: mindspore", 'install "mindspore==2.10.0" "numpy>=1.25,<2"'),
    ({"ftfy": None, "numpy": None}, {}, "not installed: numpy, ftfy", 'install "numpy>=1.25,<2" "ftfy"'),
    ({"mindspore": "2.2.14"}, {}, "outside 2.7 to 2.10", '"mindspore==2.10.0" "numpy>=1.25,<2"'),
    ({"mindspore": "2.11.0"}, {}, "outside 2.7 to 2.10", '"mindspore==2.10.0"'),
    ({"mindnlp": "0.5.1"}, {}, "mindnlp 0.5.1 needs MindSpore 2.7.0", "pip uninstall --yes mindnlp"),
    ({"mindspore": "2.7.0", "mindnlp": "0.5.1", "torch": "2.13.0"}, {}, "torch of its own in place of torch 2.13.0",
     "pip uninstall --yes mindnlp"),
    ({"mindspore": "2.7.0", "mindnlp": "0.5.1", "transformers": "5.1.0"}, {}, "beside transformers 5.1.0",
     'install "transformers==4.57.1"'),
    ({}, {"mindspore_failure": "libx.so is missing"}, "does not work: libx.so is missing",
     '--force-reinstall "mindspore==2.10.0" "numpy>=1.25,<2"'),
    ({}, {"compiler": None}, "no C++ compiler", "sudo apt-get install g++"),
    ({}, {"compiler_failure": "omp.h: No such file"}, "omp.h: No such file", "sudo apt-get install --reinstall g++"),
    ({}, {"cache": Path("/ro"), "cache_failure": "/ro: Read-only file system"}, "/ro: Read-only file system",
     'export MS_GPT_CACHE="'),
    ({}, {"ascend": Ascend(set_env=SCRIPT)}, "this shell does not know", f"source {SCRIPT}"),
    ({}, {"ascend": Ascend(), "supported_cann": ("8.5", "9.1", "9.0")}, "no CANN",
     'conda install "ascend::cann-toolkit=9.1"'),
    ({"mindspore": None}, {"ascend": Ascend()}, "not installed: mindspore", "mindspore==2.10.0"),
    ({}, {"ascend": Ascend(is_set=True, version="7.0"), "supported_cann": ("8.5", "9.0")},
     "made for CANN 8.5, 9.0, and here is 7.0", 'conda install "ascend::cann-toolkit=9.0"'),
    ({"mindspore": "2.7.0"}, {"ascend": Ascend(is_set=True, version="9.1"), "supported_cann": ("8.1", "8.2")},
     "here is 9.1", 'install "mindspore==2.10.0" "numpy>=1.25,<2"'),
    ({}, {"ascend": Ascend(is_set=True, version="7.8"), "supported_cann": ("8.5", "9.0")}, "here is 7.8",
     'install "mindspore==2.7.0"'),
    ({}, {"ascend": Ascend(is_set=True, version="7.8"), "supported_cann": ("8.5", "9.0"), "python": (3, 12)},
     "here is 7.8", 'conda install "ascend::cann-toolkit=9.0"'),
    ({}, {"missing_cuda": ("libcudnn.so.8",)}, "does not find libcudnn.so.8", '"nvidia-cudnn-cu11==8.*"'),
    ({}, {"missing_cuda": ("libcudnn.so.8",), "cuda_packages": "/a/lib:/b/lib"}, "does not find libcudnn.so.8",
     'export LD_LIBRARY_PATH="/a/lib:/b/lib:$LD_LIBRARY_PATH"'),
])
def test_known_bad_combinations(packages, facts, problem, fix, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    first = problems(packages, **facts)[0]
    assert problem in first["problem"]
    assert fix in first["fix"]
    assert not {"\n", ";"} & set(first["fix"])


def test_a_cause_is_named_and_not_its_effect():
    found = problems({"numpy": "2.1.0"}, mindspore_failure="SystemError: view")
    assert [item["fix"] for item in found] == ['python -m pip install "numpy>=1.25,<2"']


@pytest.mark.parametrize("ascend", [Ascend(is_set=True, version="9.0"), Ascend(is_set=True)])
def test_a_fitting_cann_is_no_problem(ascend):
    assert problems(ascend=ascend, supported_cann=("8.5", "9.0")) == []


def test_the_installed_mindspore_says_which_cann_it_takes():
    supported = here.supported_cann()
    assert supported
    assert all(len(version.split(".")) == 2 for version in supported)
    assert CANN.get(here.installed_version("mindspore"), supported) == supported


def test_no_npu_no_cann(tmp_path):
    assert here.find_ascend(tmp_path, {"ASCEND_HOME_PATH": "/usr/local/Ascend/cann"}) is None


@pytest.mark.parametrize(("file", "text"), [
    ("compiler/version.info", "Version=8.5.0.1.220\nversion_dir=8.5\n"),
    ("x86_64-linux/ascend_toolkit_install.info", "package_name=Ascend-cann-toolkit\nversion=8.5.0\n"),
])
def test_cann_is_found(tmp_path, file, text):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "davinci0").touch()
    home = tmp_path / "usr/local/Ascend/ascend-toolkit"
    (home / file).parent.mkdir(parents=True)
    (home / file).write_text(text)
    assert here.find_ascend(tmp_path, {}) == Ascend()
    (home / "set_env.sh").touch()
    assert here.find_ascend(tmp_path, {}) == Ascend(set_env=str(home / "set_env.sh"))
    found = here.find_ascend(tmp_path, {"ASCEND_HOME_PATH": str(home)})
    assert (found.is_set, found.version) == (True, "8.5")


def test_cuda_is_found(tmp_path):
    def load(name):
        if "cudnn" in name:
            raise OSError(f"{name}: cannot open shared object file")

    assert here.find_nvidia(tmp_path, load) is None
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidia0").touch()
    assert here.find_nvidia(tmp_path, load) == ("libcudnn.so.8",)
    assert here.find_nvidia(tmp_path, lambda name: None) == ()


def test_cuda_from_pip_is_found(tmp_path, monkeypatch):
    for name in CUDA_LIBRARIES[:2]:
        (tmp_path / "nvidia" / name.split(".")[0] / "lib").mkdir(parents=True)
        (tmp_path / "nvidia" / name.split(".")[0] / "lib" / name).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    folders = here.cuda_packages().split(":")
    assert [Path(folder).parts[-2:] for folder in folders] == [("libcudart", "lib"), ("libcublas", "lib")]


@pytest.mark.parametrize(("command", "failure"), [
    ("nothing-of-this-name", "No such file"),
    ('"unfinished', "No closing quotation"),
    ("sh -c 'echo broken++ 1.0; echo x.cpp:1: fatal error: omp.h >&2; exit 1'", "fatal error: omp.h"),
    ("true", None),
])
def test_the_compiler_is_tried(monkeypatch, command, failure):
    monkeypatch.setenv("CXX", command)
    _, found = here.find_compiler()
    assert found is None if failure is None else failure in found
    if failure:
        assert problems(compiler_failure=found)[0]["fix"] == "unset CXX"


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    assert here.cache_failure(tmp_path / "not" / "yet") is None
    assert not (tmp_path / "not").exists()
    assert str(tmp_path / "file") in here.cache_failure(tmp_path / "file" / "cache")
    assert "colon" in here.cache_failure(tmp_path / "a:b")
    assert "/proc" in here.cache_failure(Path("/proc/1/cache"))


def info(code="", *flags):
    program = f"import sys; {code}\nfrom ms_gpt.cli import main\nsys.exit(main(['info', *sys.argv[1:]]))"
    return subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, cwd=ROOT,
                          check=False)


def test_info_works_without_mindspore(tmp_path):
    (tmp_path / "mindspore.py").write_text("raise ImportError('libgomp is missing')")
    done = info(f"sys.path.insert(0, {str(tmp_path)!r})", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["devices"] == {"cpu": False, "gpu": False, "ascend": False}
    assert facts["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert any("libgomp is missing" in item["problem"] for item in facts["problems"])


def test_info_works_where_nothing_is_installed():
    # -S: without site-packages, so without rich too.
    done = subprocess.run([sys.executable, "-S", "-m", "ms_gpt", "info"], capture_output=True, text=True, cwd=ROOT,
                          check=False)
    assert done.returncode == 0, done.stderr
    assert f"not installed: {', '.join(NEEDED)}" in done.stdout
    assert "fix: python -m pip install" in done.stdout
