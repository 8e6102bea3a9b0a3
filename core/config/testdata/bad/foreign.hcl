agent {
  name      = env("CANARY")
  roles     = ["queen", env("CANARY")]
  advertise = "x ${file("../good/token")} y"
  data_dir  = file("${env("CANARY")}/data")

  log {
    level = env("CANARY")
  }
}

queen {
  listen = env("CANARY_ADDRESS")

  retry {
    budget = env("CANARY")
  }
}

worker "w" {
  adapter = env("CANARY")
  devices = [file("../good/token")]
  env     = { (env("CANARY")) = "x" }
  args    = [env("CANARY_ARGUMENT")]
}

worker "v" {
  adapter = "native"
  env     = { for s in [env("CANARY"), env("CANARY")] : s => s }
  devices = { a = 1 }[env("CANARY")]
}

model "a" {
  source  = "builtin:x"
  aliases = [env("CANARY_NAME")]
}

model "b" {
  source  = "builtin:y"
  aliases = [env("CANARY_NAME")]
}
