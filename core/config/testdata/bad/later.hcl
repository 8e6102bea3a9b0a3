gossip {
  bind = "127.0.0.1:7834"
}

plugin "modelscope" {
  source = "git::https://example.org/x.git"
}
