# Every command of Double Boiler. `make help` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Every target with a `##` text: commands, not files.
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*\#\# .*/\1/p' Makefile)

# The newest Python from 3.11 on that can make a virtual environment.
FIND_PYTHON = for python in python3.14 python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$python" && exit; done; \
	echo "make: no Python from 3.11 on with venv found: install python3 and python3-venv" >&2; exit 1

help: ## list these commands (make help-fly, help-render, …: those for a platform of docs/platforms.md)
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' Makefile | awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'

# The commands in a platform's section of docs/platforms.md.
help-%:
	@awk '/^## /{here = $$2 == "$*"} here && /^    /{print; found = 1} END{exit !found}' docs/platforms.md || \
		{ echo "make: docs/platforms.md has no section $*" >&2; exit 1; }

run: .venv/installed .env ## start the packed dyno at http://127.0.0.1:5000 (PORT=… for another port)
	@exec app/boil start --release

test: .venv/installed-dev ## run all the tests
	@$(MAKE) --no-print-directory lint
	@.venv/bin/python -m pytest $(PYTEST)

admin: .venv/installed-dev .env ## make an account for Django's admin (NAME=…; TARGET=… APP=… HOST=… as for verify)
	@.venv/bin/python -m tests.verify.admin

bench: .venv/installed-dev ## run the page's 20-second benchmark on the dyno here (TARGET=… APP=… HOST=… URL=… as for verify)
	@.venv/bin/python -m tests.bench.course $(BENCH)

bench-compare: .venv/installed-dev ## measure this layout beside others, in turns (BENCH="--rounds 1 --delay 2")
	@.venv/bin/python -m tests.bench.compare $(BENCH)

verify: .venv/installed-dev .env ## prove that a running dyno works (TARGET=… APP=… HOST=… URL=…: docs/verify.md)
	@.venv/bin/python -m pytest --confcutdir tests/verify -p no:cacheprovider -p no:django \
		--quiet --no-header --no-summary tests/verify

lint: .venv/installed-dev ## check the code's style
	@.venv/bin/ruff check --quiet . && .venv/bin/ruff format --quiet --check .

lock: .venv/installed-dev ## pin the dependencies of pyproject.toml anew
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url pyproject.toml --upgrade --output-file requirements.txt
	@.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--no-emit-index-url --group dev --constraint requirements.txt --upgrade --output-file tests/requirements.txt

deploy-heroku: .venv/installed-dev ## deploy to Heroku: APP=name (REGION= SIZE= DIRTY=1; CHECK=1 only shows what would change)
	@$(PLAY) deploy/heroku.yml

destroy-heroku: .venv/installed-dev ## remove APP=name from Heroku, its data included
	@$(PLAY) deploy/heroku-destroy.yml

deploy-dokku: .venv/installed-dev ## deploy to a Dokku host: HOST=dokku.example.com APP=name (SIZE= DIRTY=1 CHECK=1)
	@$(PLAY) deploy/dokku.yml

destroy-dokku: .venv/installed-dev ## remove APP=name from the Dokku host HOST, its data included
	@$(PLAY) deploy/dokku-destroy.yml

provision-dokku: .venv/installed-dev ## prepare a Debian or Ubuntu server for deploy-dokku: HOST=root@server (CHECK=1)
	@$(if $(HOST),,$(error say which server: make $@ HOST=root@dokku.example.com))ANSIBLE_CONFIG=deploy/ansible.cfg \
		.venv/bin/ansible-playbook $(if $(CHECK),--check --diff) --inventory "$$HOST," deploy/provision-dokku.yml

dokku: .venv/installed-dev dokku/node_modules/installed ## ask Dokku about the app that was deployed last: CMD="ps:report"
	@.venv/bin/python dokku/toolbelt.py

deploy-piku: .venv/installed-dev ## deploy to a Piku host: HOST=example.com APP=name (DIRTY=1; CHECK=1 only shows what would change)
	@$(PLAY) deploy/piku.yml

destroy-piku: .venv/installed-dev ## remove APP=name from a Piku host: HOST=example.com; Piku keeps its data
	@$(PLAY) deploy/piku-destroy.yml

deploy-compose: deploy/compose/.env ## start it with Docker Compose on this host, at http://127.0.0.1:5000
	@$(COMPOSE) --file deploy/compose/compose.yml up --build --detach --wait --wait-timeout 300

COMPOSE = docker compose

# Made once and kept: the keys, and the database's password.
deploy/compose/.env:
	@umask 077 && python3 -c 'import secrets; print(*(name + "=" + secrets.token_urlsafe(50) for name in \
		("POSTGRES_PASSWORD", "DJANGO_SECRET_KEY", "STATUS_TOKEN")), sep="\n")' > $@

scale-out: .venv/installed-dev ## worker and beat as process types of their own: TARGET=heroku APP=name
	@$(PLAY) $(SCALE) --extra-vars layout=out

scale-in: .venv/installed-dev ## and back to one packed dyno: TARGET=heroku APP=name
	@$(PLAY) $(SCALE) --extra-vars layout=in

SCALE = $(or $(wildcard deploy/$(TARGET)-scale.yml),$(error say where: make $@ TARGET=heroku APP=name))

# Runs a playbook for the deployment APP. Other variables given to make override the inventory's.
PLAY = $(if $(APP),,$(error say which deployment: make $@ APP=name))ANSIBLE_CONFIG=deploy/ansible.cfg \
	.venv/bin/ansible-playbook $(if $(CHECK),--check --diff) --extra-vars "deployment=$$APP" \
	$(if $(HOST),--extra-vars "host=$$HOST") $(if $(REGION),--extra-vars "region=$$REGION") \
	$(if $(SIZE),--extra-vars "size=$$SIZE") $(if $(DIRTY),--extra-vars dirty=true)

.venv/bin/python:
	@python=$$($(FIND_PYTHON)) && echo "Making .venv with $$("$$python" --version)" && "$$python" -m venv --clear .venv

.venv/installed: requirements.txt | .venv/bin/python
	@echo "Installing the packages of requirements.txt: some 20 seconds"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

.venv/installed-dev: tests/requirements.txt .venv/installed
	@echo "Installing the packages of tests/requirements.txt: some 10 seconds"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r tests/requirements.txt
	@touch $@

dokku/node_modules/installed: dokku/package-lock.json
	@npm ci --prefix dokku --silent --no-audit --no-fund && touch $@

# Development settings, made once and kept: a secret key, error pages, this machine only.
.env: | .venv/installed
	@umask 077 && .venv/bin/python -c 'import secrets; print("DJANGO_DEBUG=1", "BIND_ADDRESS=127.0.0.1", \
		"DJANGO_SECRET_KEY=" + secrets.token_urlsafe(50), sep="\n")' > $@
