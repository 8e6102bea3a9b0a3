model "smol" {
  aliases = ["x"]
}

worker "mine" {}

credential "npm" {}

credential "other" {
  value = env("UNSET")
}
