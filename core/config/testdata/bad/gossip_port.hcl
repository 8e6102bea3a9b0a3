gossip {
  bind = "127.0.0.1:7833"
  key  = ""
}
