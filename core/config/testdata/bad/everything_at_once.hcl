queue {
  listen = "127.0.0.1:7833"
}

queen {
  lisen = "127.0.0.1:7833"
  limits {
    body      = 10.5
    queu_wait = "30s"
    load_wait = "soon"
  }
  limit {
    connections = 8
  }
}

worker "llama" {
  context = "8k"
  slots   = 1.5
  threads = -1
  devices = "cuda0"
  adapter = "vllm"
}
