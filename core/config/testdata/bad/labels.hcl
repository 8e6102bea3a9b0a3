model {
  source = "builtin:stories260k"
}

model "a" "b" {
  source = "builtin:stories260k"
}

model "../etc" {
  source = "builtin:stories260k"
}

model "UPPER" {
  source = "builtin:stories260k"
}

queen "main" {
  listen = "127.0.0.1:1"
}

vendor "lokal" {
  enabled = false
}

vendor "hugginface" {
  enabled = true
}

provisioner "pip" {
  registry = "ftp://example.org"
}
