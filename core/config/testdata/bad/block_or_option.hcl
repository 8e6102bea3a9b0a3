queen   = "127.0.0.1:7833"
model   = "smol"
listen  = "127.0.0.1:7833"
backoff = ["1s"]

agent {
  roles {
    queen = true
  }
  log = "info"
}

fleet "chat" {
  model = "smol"
}
