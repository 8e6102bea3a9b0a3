gossip {
  bind = "10.0.0.5"
  join = ["10.0.0.5:7834", "http://10.0.0.6:7834"]
  key  = "short"
}

queen {
  listen = "127.0.0.1:7834"
}
