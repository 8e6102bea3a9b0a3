credential "blank" {
  value = "  "
  hosts = ["npm.example.org"]
}

credential "empty" {
  value = env("EMPTY")
  hosts = ["npm.example.org"]
}

credential "literal" {
  value = "canary-literal
  hosts = ["https://npm.example.org/"]
}
