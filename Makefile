# Makefile -- everything that can be made here.  `make help` lists it.

CFLAGS   ?= -O2 -g
LDLIBS   ?= -lbearssl -pthread
PYTHON   := $(firstword $(wildcard /usr/bin/python3) python3)

PIECES   := $(wildcard amalgamate/*.h amalgamate/*/*.h amalgamate/*/*.c)
COMMAND  := $(patsubst examples/llmkit/%.c,build/obj/%.o,$(wildcard examples/llmkit/*.c))
EXAMPLES := $(patsubst examples/%.c,build/%,$(wildcard examples/*.c))
BENCHES  := $(patsubst tests/bench_%.c,%,$(wildcard tests/bench_*.c))
SIMS     := $(patsubst tests/sim_%.c,%,$(wildcard tests/sim_*.c))
COMPILE   = $(CC) -std=c11 -Wall -Wextra -I. $(CPPFLAGS) $(CFLAGS)
HASH     := \#
JSMN_H    = $(shell echo '$(HASH)include <jsmn.h>' | $(CC) $(CPPFLAGS) -M -x c - | \
                    tr ' ' '\n' | grep '/jsmn\.h$$')

# The header, the command, the examples.

.PHONY: all
all: llmkit.h build/llmkit $(EXAMPLES)  ## (default) llmkit.h, build/llmkit and the examples

llmkit.h: build/amalgamate $(PIECES)
	build/amalgamate amalgamate $@

build/amalgamate: amalgamate/amalgamate.c
	@mkdir -p build
	$(CC) -std=c11 -Wall -Wextra -O1 -o $@ $<

build/llmkit: $(COMMAND)
	$(CC) $(CFLAGS) $(LDFLAGS) -o $@ $(COMMAND) $(LDLIBS)

build/obj/%.o: examples/llmkit/%.c llmkit.h $(wildcard examples/llmkit/*.h)
	@mkdir -p build/obj
	$(COMPILE) -c -o $@ $<

$(EXAMPLES): build/%: examples/%.c llmkit.h
	@mkdir -p build
	$(COMPILE) $(LDFLAGS) -o $@ $< $(LDLIBS)

# What a visitor runs.  Both install what is missing first.

.PHONY: demo test
demo:                                   ## 10,000 requests over TLS against mock servers here
	@tests/deps demo
	@$(MAKE) --no-print-directory build/llmkit
	@examples/demo.sh

test:                                   ## all tests; `tests/run NAME...` runs those that match
	@tests/deps test
	@$(PYTHON) tests/run

.PHONY: deps
deps:                                   ## installs what all targets need
	@tests/deps bench

# The amalgamation.

.PHONY: amalgamate-check bundle split
amalgamate-check: build/amalgamate      ## fails if llmkit.h is not what amalgamate/ makes
	@build/amalgamate --check amalgamate llmkit.h || \
	  { echo "edit amalgamate/, run make, commit both" >&2; exit 1; }

bundle: build/amalgamate                ## build/llmkit.h with jsmn in it, for who copies one file
	build/amalgamate --bundle "$(JSMN_H)" amalgamate build/llmkit.h

split: llmkit.h                         ## build/split/llmkit.h (declarations) and llmkit.c
	@mkdir -p build/split
	sed '/^#endif .* LLMKIT_H /q' llmkit.h > build/split/llmkit.h
	{ printf '#define LLMKIT_IMPLEMENTATION\n#include "llmkit.h"\n'; \
	  sed '1,/^#endif .* LLMKIT_H /d' llmkit.h; } > build/split/llmkit.c

# Single checks.  `make test` runs them all.

.PHONY: symbols static tcc fuzz format-check
symbols:                                ## the implementation defines and needs the right symbols
	@$(PYTHON) tests/run check/symbols

static:                                 ## a fully static program with TLS, by musl: build/hello-static
	@sh tests/checks/musl.sh

tcc:                                    ## examples/hello.c as a script
	tcc -I. -lbearssl -run examples/hello.c

fuzz:                                   ## each fuzzer, or T=NAME, for S=60 seconds
	@LK_FUZZ_SECONDS=$(or $(S),60) $(PYTHON) tests/run fuzz/$(T)

format-check:                           ## what clang-format would change in the .c files
	clang-format --dry-run amalgamate/*/*.c amalgamate/*.c examples/*.c examples/*/*.c

# Figures.  Each group prints a table and appends to build/figures.jsonl.

.PHONY: bench sim sizes
bench: $(or $(B:%=run-bench-%),$(BENCHES:%=run-bench-%) run-bench-size)  ## all benchmarks, or B=GROUP

sim: $(or $(S:%=run-sim-%),$(SIMS:%=run-sim-%))            ## all simulations, or S=GROUP

run-bench-%: build/bench/%
	@tests/deps bench
	$<

run-bench-size: sizes

run-sim-%: build/sim/%
	$<

build/bench/client: LDLIBS += -lcurl

build/bench/%: tests/bench_%.c tests/bench.h tests/load.h llmkit.h
	@mkdir -p build/bench
	$(COMPILE) -DNDEBUG -Itests $(LDFLAGS) -o $@ $< $(LDLIBS)

build/sim/%: tests/sim_%.c tests/bench.h llmkit.h
	@mkdir -p build/sim
	$(COMPILE) -DNDEBUG -Itests $(LDFLAGS) -o $@ $< $(LDLIBS)

sizes: llmkit.h                         ## bytes of code with each part off, lines, compile time
	@tests/sizes

.PHONY: clean help
clean:                                  ## removes build/
	rm -rf build

help:                                   ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
	  awk -F'|' '{ printf "%-24s %s\n", $$1, $$2 }'
