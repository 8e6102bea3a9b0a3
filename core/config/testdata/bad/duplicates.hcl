agent {
  name = "a"
  name = "b"
}

agent {
  roles = ["queen", "queen"]
}

model "smol" {
  source  = "builtin:stories260k"
  aliases = ["gpt", "story"]
}

model "big" {
  source  = "builtin:stories260k"
  aliases = ["story"]
}

model "gpt" {
  source = "builtin:stories260k"
}

model "smol" {
  source = "builtin:stories260k"
}

vendor "local" {}
vendor "local" {}
