"""The one place where objects are built. It alone opens the keyring and hands out signers."""

from appliance.wiring.building import service
from appliance.wiring.diagnosis import doctor
from appliance.wiring.installing import Person, init
from appliance.wiring.serving import serve

__all__ = ["Person", "doctor", "init", "serve", "service"]
