# Sourced by run and test: makes .venv and installs the project with what was asked for; quick where that is done.
# usage: setup <extras>, such as "dev"
setup() {
  local python marker
  if [ ! -x .venv/bin/python ]; then
    for python in python3 python3.14 python3.13 python3.12 python3.11 none; do
      if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
    done
    if [ "$python" = none ]; then echo "hydratune needs Python 3.11 or newer" >&2; exit 1; fi
    "$python" -m venv .venv
  fi
  marker=.venv/.hydratune-${1:-core}
  if [ ! -e "$marker" ] || [ pyproject.toml -nt "$marker" ]; then
    echo "installing hydratune${1:+[$1]} into .venv (torch is large: a few minutes the first time)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${1:+[$1]}"
    touch "$marker"
  fi
}
