agent {
  name      = "no spaces"
  roles     = ["queen", "worker"]
  advertise = "10.0.0.5:7833"
  log {
    level  = "debugg"
    format = 5
  }
}

queen {
  listen = "7833"
  hives  = ["127.0.0.1:7835"]
  retry {
    budget   = 20
    attempts = 11
  }
  heartbeat {
    interval = 5
  }
  outlier {
    ejection     = "2m"
    max_ejection = "1m"
  }
}

hive {
  listen       = "127.0.0.1:99999"
  worker_ports = "7999-7855"
  drain        = "-1s"
  restart {
    backoff = []
  }
  reserve {
    disk   = "2 gigs"
    memory = true
  }
}

vendor "local" {
  enabled = "maybe"
}

worker "a" {
  adapter = "nativ"
  source  = "llama"
  devices = ["gpu0"]
  env     = { LD_PRELOAD = "/tmp/x.so" }
  args    = ["--secret-fd=4"]
}

worker "b" {
  adapter = "echo"
  source  = "npm:x@1"
  env     = ["A=B"]
  args    = [1]
}

provisioner "npm" {
  registry = "https://user:password@example.org/"
}
