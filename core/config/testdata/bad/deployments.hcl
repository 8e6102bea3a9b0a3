model "smol" {
  source = "builtin:stories260k"
}

deployment "chat" {
  model    = "smoll"
  worker   = "lama"
  context  = "8k"
  slots    = 1000
  idle_ttl = "1500ms"
  pin      = ["tower/gpu0"]
  priority = "high"
  env      = { SECRET = "canary", LD_PRELOAD = "canary" }
  args     = ["--port=1"]
  replica {
    min = 1
  }
  replicas {
    min = 4
    max = 2
    cpu = 1
  }
  place {
    require  = device.knd == "cuda"
    prefers  = true
    max      = 1
  }
}

deployment "chat" {
  model = "hff:org/repo"
}

deployment {
}

deployment "embed" {
  worker = "echo"
  model  = "smol"
  replicas {
    per = "gpus"
  }
}

deployment "both" {
  model  = env("UNSET")
  worker = "llama"
  replicas {
    max = 2
    per = "gpu"
  }
}

deployment "hello" {
  model  = "echo:hello"
  worker = "llama"
  min    = 1
}
