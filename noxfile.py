"""Conveniences: the steps of .ci/run one by one, in environments that are kept, and the suite on every Python."""

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "virtualenv"  # .ci/run calls pip
nox.options.reuse_venv = "yes"

PYTHONS = nox.project.python_versions(nox.project.load_toml())


def gate(session: nox.Session, step: str) -> None:
    """Run one step of .ci/run."""
    session.run("bash", ".ci/run", step, external=True)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Test as in the README; arguments go to pytest, such as -m slow."""
    session.install("-e", ".[test]")
    session.run("pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint the sources and check the project's own files."""
    session.install("-r", ".ci/requirements.txt")
    gate(session, "lint")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, the stub of the compiled module, and the layers."""
    session.install("-r", ".ci/requirements.txt", ".[demo]")
    gate(session, "types")


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Write a coverage report to htmlcov."""
    session.install("-e", ".[test]", "pytest-cov")
    session.run("pytest", "-m", "", "--cov", "--cov-report=term", "--cov-report=html", *session.posargs)


@nox.session(python=PYTHONS[0], default=False)
def oldest(session: nox.Session) -> None:
    """Test with the lowest versions that pyproject.toml allows."""
    gate(session, "oldest")


@nox.session(default=False)
def newest(session: nox.Session) -> None:
    """Run all tests with the newest versions, on the newest Python there is."""
    gate(session, "newest")


@nox.session(default=False)
def mutants(session: nox.Session) -> None:
    """Break the library in many ways, and show that the suite sees each; arguments are names of some."""
    session.install("-e", ".[test]")
    session.run("python", "tests/mutants.py", *session.posargs)


@nox.session(default=False)
def benchmarks(session: nox.Session) -> None:
    """Run every benchmark once."""
    session.install("-r", ".ci/requirements.txt", ".[demo]")
    gate(session, "benchmarks")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Run the examples of the gallery, build the documentation into docs/_build/html, and follow every link within."""
    session.install("-e", ".[test,docs]")
    gate(session, "docs")


@nox.session(default=False)
def roundings(session: nox.Session) -> None:
    """Hold the claims of the gallery's examples under every rounding that this machine can bring about."""
    session.install("-e", ".[test,docs]")
    gate(session, "roundings")


@nox.session(default=False)
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel without OpenMP, check both and test the wheel."""
    session.install("-r", ".ci/requirements.txt")
    gate(session, "wheel")


@nox.session(default=False)
def sanitized(session: nox.Session) -> None:
    """Test the kernels under gcc's AddressSanitizer and UndefinedBehaviorSanitizer; all with BNCPU_SANITIZED=tests."""
    gate(session, "sanitized")


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz each target for BNCPU_FUZZ_SECONDS."""
    session.install(".")
    gate(session, "fuzz")


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Test the CUDA backend in the simulator, and compile its kernels; neither needs a device."""
    session.install("-e", ".[test]")
    gate(session, "gpu")


@nox.session(default=False)
def gpu_extra(session: nox.Session) -> None:
    """Install the extra gpu on the newest Python there is, and compile a kernel."""
    gate(session, "gpu_extra")


@nox.session(default=False)
def mpi(session: nox.Session) -> None:
    """Run the recipe for MPI on two ranks."""
    session.install("-e", ".[test]")
    gate(session, "mpi")


@nox.session(default=False)
def torch(session: nox.Session) -> None:
    """Test bncpu.torch beside PyTorch."""
    session.install("-e", ".[test]")
    gate(session, "torch")


@nox.session(default=False)
def page(session: nox.Session) -> None:
    """Move the sliders of the interactive page in Chromium, and compare its numbers."""
    session.install("-e", ".[docs]", "hypothesis", "pytest", "pytest-timeout")
    gate(session, "page")


@nox.session(default=False)
def threads(session: nox.Session) -> None:
    """Test what uses threads under clang's ThreadSanitizer and archer."""
    gate(session, "threads")


@nox.session(default=False)
def memory(session: nox.Session) -> None:
    """Run every loop under valgrind."""
    gate(session, "memory")


@nox.session(default=False)
def arm(session: nox.Session) -> None:
    """Test the loops on 64-bit ARM: under qemu, as root, where the machine is another."""
    gate(session, "arm")


@nox.session(default=False)
def wheels(session: nox.Session) -> None:
    """Build a wheel for each Python here, and test it where there is no compiler; as root."""
    gate(session, "wheels")


@nox.session(default=False)
def arm_wheel(session: nox.Session) -> None:
    """Do the same for 64-bit ARM, under qemu."""
    gate(session, "arm_wheel")
