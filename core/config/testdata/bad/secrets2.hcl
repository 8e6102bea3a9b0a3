credential "typo" {
  valeu = "canary-typo"
  hosts = ["https://npm.example.org/"]
}

credential "number" {
  value = 1234567890
  hosts = "npm.example.org"
}

credential "line" { value = { canary = "canary-object" } }

credential "heredoc" {
  value = <<-EOT
    canary-heredoc ${missing}
  EOT
  hosts = ["npm.example.org"]
}
