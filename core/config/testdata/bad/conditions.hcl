deployment "a" {
  model = "builtin:stories260k"
  place {
    require = device.memory
    prefer  = device.memory >= "8GiB"
  }
}

deployment "b" {
  model = "builtin:stories260k"
  place {
    require = device.kind == cuda
    prefer  = contains(hive.labels, 1) && contain(hive.labels, "x")
  }
}

deployment "c" {
  model = "builtin:stories260k"
  place {
    require = device.kind == "gpu" || hive.labels == "quiet" || hive.labels[0] == "quiet"
    prefer  = [for l in hive.labels : l][0] == "x"
  }
}

deployment "d" {
  model = "builtin:stories260k"
  place {
    require = hive.name == "${hive.id}" && env("CANARY") == "x"
    prefer  = device.memory == "8GiB" || hive == "tower" || devices.kind == "cpu" || device["kind"] == "cpu"
  }
}

deployment "e" {
  model = "builtin:stories260k"
  place {
    require = length(hive.labels, 1) > 0 && gib("8") < device.free && !device.index && -hive.name == "a"
    prefer  = (device.index > 0 ? "a" : 1) == 1 && device.name.first == "" && contains([1, "a", null], 1) && 1e999 > device.free
  }
}

deployment "f" {
  model = "builtin:stories260k"
  place {
    require = "yes"
    prefer  = upper(device.name...) == "" && hive.labels.*.x == {}
  }
}
