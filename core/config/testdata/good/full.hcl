agent {
  name      = "tower"
  roles     = ["queen"]
  advertise = "10.0.0.5"
  labels    = ["quiet", "office"]
  data_dir  = "data"
  log {
    level  = "debug"
    format = "json"
  }
}

queen {
  listen = "[::1]:0"
  hives  = ["http://10.0.0.5:7835/"]
  limits {
    body       = 65536
    load_wait  = "1h"
    queue_wait = "1m30s"
  }
}

hive {
  orphan_ttl = 0
  mirrors    = ["http://10.0.0.5:9000"]
  reserve {
    disk = "0B"
  }
}

vendor "local" {
  enabled = env("LOCAL")
}

vendor "huggingface" {
  endpoint   = "http://10.0.0.5:9001/hf/"
  credential = file("token")
}

vendor "ollama" {
  registry = "http://10.0.0.5:5000"
}

vendor "pypi" {
  registry = "https://pypi.example.org/simple"
}

provisioner "npm" {
  registry = "http://127.0.0.1:4873"
}

worker "gpu" {
  adapter = "native"
  source  = "path:engine"
  devices = ["cuda0", "cuda1"]
  context = env("CONTEXT")
  env     = { LANG = "C.UTF-8", UNSET = env("UNSET") }
  args    = ["--a", "--a"]
}

worker "llama" {
  threads = 2
}

model "org/smol" {
  source  = "file:models/smol.gguf"
  aliases = ["gpt-4o-mini", "Llama3:8b"]
}

credential "npm" {
  value = file("token")
  hosts = ["npm.example.org", "127.0.0.1:4873"]
}

credential "absent" {
  value = env("UNSET")
  hosts = ["npm.example.org"]
}

deployment "chat" {
  model    = "gpt-4o-mini"
  worker   = "gpu"
  context  = 8192
  slots    = env("UNSET")
  idle_ttl = "90s"
  pin      = ["tower/cuda0", "laptop"]
  priority = -5
  env      = { TOKEN = file("token"), LANG = "C" }
  args     = ["--b"]
  replicas {
    min = 2
    max = 4
  }
  place {
    require = (
      device.kind == "cuda" && # the fast one
      device.memory>=gib( 8 )
    )
    prefer = contains(hive.labels, "quiet")
    spread = false
  }
}

deployment "everywhere" {
  model = "builtin:stories260k"
  replicas {
    per = "gpu"
  }
  place {
    require = null
  }
}

deployment "hello" {
  model = "echo:hello"
}

provisioner "pypi" {
  registry = "https://engines.example.org/simple"
}

provisioner "recipe" {
  tools = ["cmake", "ninja"]
}

provisioner "github" {
  endpoint   = "https://github.example.org/api/v3/"
  credential = "canary-token"
}
